"""hv_vmbus and a driver, played by FakeGuest, against the whole bus: channels that come and go, and their timers."""

from __future__ import annotations

from uuid import UUID

import pytest

from pyvmm.errors import GuestProtocolError
from pyvmm.trace import Record, subscribe, unsubscribe
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.offer import Offer
from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import BALLOON, Recorder


def test_packets_go_both_ways(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.send(b"12345678")
    device.channel.send(b"abcdefgh")
    assert device.payloads == [b"12345678"]
    assert guest.take_bytes() == b"abcdefgh"


@pytest.mark.parametrize("version", [0x20004, 0x30000, 0x40000, 0x40001, 0x50000, 0x50001, 0x50002, 0x50003])
def test_every_version_serves_a_channel(device: Recorder, version: int) -> None:
    guest = FakeGuest(version=version)
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]
    assert (device.channel.version, guest.bus.version) == (version, version)


def test_guest_falls_back_to_what_is_served(device: Recorder) -> None:
    guest = FakeGuest(max_version=0x40000)
    assert guest.partition.hypercall_post(4, p.InitiateContact(0x50003, 0, 2, 0, 0).build()) == 0x12
    assert not guest.contact(0x40001).supported
    guest.version = 0x40000
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_driver_unbound_and_bound_again(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    for _ in range(3):
        guest.reopen().send(b"12345678")
    assert device.calls == ["opened", *["closed", "opened"] * 3]
    assert device.payloads == [b"12345678"] * 3


def test_hv_vmbus_removed_and_loaded_again(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.close().unload().connect().open(device).send(b"12345678")
    assert device.calls == ["opened", "closed", "opened"]


def test_kexec_unloads_with_the_channel_open(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.unload()
    assert device.calls == ["opened", "closed"]
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_crash_kernel_makes_contact_without_unload(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.partition.slots_busy = True
    device.channel.send(b"lost")
    guest.post(b"\x0d" + bytes(11))
    guest.partition.slots_busy = False
    guest.connect().open(device).send(b"12345678")
    assert device.calls == ["opened", "closed", "opened"]


def test_machine_reset_closes_then_resets_devices(guest: FakeGuest, device: Recorder) -> None:
    other = Recorder(Offer("other", BALLOON, UUID(int=2)))
    guest.bus.add(other)
    guest.open(device)
    guest.reset()
    assert (device.calls, other.calls) == (["opened", "closed", "reset"], ["reset"])
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_removed_device_is_rescinded_and_can_come_back(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.bus.remove(device)
    assert device.calls == ["opened", "closed"]
    guest.bus.add(device)
    guest.accept_rescind()
    guest.open(device).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_events_follow_modify_channel() -> None:
    guest, device = FakeGuest(vp_count=2), Recorder()
    driver = guest.open(device, target_vp=1)
    device.channel.send(b"one")
    assert driver.signals == 1
    driver.take_packet()
    guest.request(p.ModifyChannel(driver.offer.relid, 0))
    assert guest.expect(p.ModifyChannelResponse).status == 0
    driver.target_vp = 0
    device.channel.send(b"two")
    assert driver.signals == 2


def test_a_guest_that_wants_no_events_gets_none(guest: FakeGuest, device: Recorder) -> None:
    driver = guest.open(device, target_vp=p.NO_VP)
    device.channel.send(b"quietly.")
    assert (driver.signals, driver.incoming.used() > 0) == (0, True)
    assert "target-vp" not in guest.bus.info()[0]
    guest.send(b"12345678")
    assert device.payloads == [b"12345678"]
    guest.request(p.ModifyChannel(driver.offer.relid, 0))
    assert guest.expect(p.ModifyChannelResponse).status == 0
    driver.target_vp = 0
    driver.incoming.take()
    device.channel.send(b"aloud...")
    assert driver.signals == 1


def test_a_guest_of_version_6_0_opens_and_talks() -> None:
    guest, device = FakeGuest(version=0x60000, max_version=p.Version.COPPER), Recorder()
    guest.open(device).send(b"12345678")
    assert (device.payloads, device.channel.version, guest.bus.version) == ([b"12345678"], 0x60000, 0x60000)
    assert FakeGuest(version=0x60000).contact().supported == 0, "only if the user asks for it"


def test_messages_go_to_the_vp_of_the_contact() -> None:
    guest = FakeGuest(vp_count=3)
    guest.contact(vp=2)
    guest.request(p.RequestOffers())
    assert [vp for vp, _ in guest.inbox] == [2]


def test_timers_of_a_channel_end_with_it(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    fired: list[str] = []
    device.channel.every(1.0, lambda: fired.append("every"))
    device.channel.after(2.5, lambda: fired.append("after"))
    guest.advance(seconds=2.2)
    assert fired == ["every", "every"]
    guest.close()
    guest.advance(seconds=10)
    assert fired == ["every", "every"]


def test_closed_channel_takes_nothing(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    channel = device.channel
    guest.close()
    channel.send(b"x")
    channel.when_room(10, lambda: pytest.fail("called after close"))
    assert channel.after(0, lambda: pytest.fail("called after close")).cancelled
    guest.advance(seconds=1)
    assert (channel.room(), channel.queued) == (0, 0)


def test_what_a_guest_did_wrong_ends_in_the_timer(guest: FakeGuest, device: Recorder) -> None:
    def fails() -> None:
        raise GuestProtocolError("no answer")

    guest.open(device)
    device.channel.after(1, fails)
    guest.advance(seconds=2)
    assert guest.bus.refused["recorder"] == 1


def test_info_shows_relid_state_and_counters(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    assert guest.bus.info()[0]["state"] == "hidden"
    guest.open(device).send(b"12345678")
    row = guest.bus.info()[0]
    assert (row["relid"], row["state"], row["target-vp"], row["packets-in"]) == (1, "open", 0, 1)
    assert row["ring-in"] == row["ring-out"] == 4 * 4096


def test_trace_of_an_open_reads_as_qemus(guest: FakeGuest, device: Recorder) -> None:
    lines: list[str] = []

    def sink(record: Record) -> None:
        lines.append(record.text())

    subscribe("vmbus_*", sink)
    try:
        guest.bus.add(device)
        guest.connect()
        guest.open(device)
        guest.close()
    finally:
        unsubscribe(sink)
    gpadl = 0xE1E10
    assert lines == [
        "vmbus_recv_message type 14 size 40",
        "vmbus_process_incoming_message type 14",
        "vmbus_initiate_contact version 5.3 target vp 0 mon pages 0x2000,0x3000 int page 0x2",
        "vmbus_post_msg type 15 size 16",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 3 size 8",
        "vmbus_process_incoming_message type 3",
        f"vmbus_send_offer channel #1 dev {id(device):#x}",
        "vmbus_post_msg type 1 size 196",
        "vmbus_msg_cb message status 0",
        "vmbus_terminate_offers",
        "vmbus_post_msg type 4 size 8",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 8 size 108",
        "vmbus_process_incoming_message type 8",
        f"vmbus_gpadl_header gpadl #{gpadl} gfns 10",
        f"vmbus_gpadl_created gpadl #{gpadl}",
        "vmbus_post_msg type 10 size 20",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 5 size 148",
        "vmbus_process_incoming_message type 5",
        f"vmbus_open_channel channel #1 gpadl #{gpadl} target vp 0",
        "vmbus_channel_open channel #1 status 0",
        "vmbus_post_msg type 6 size 20",
        "vmbus_msg_cb message status 0",
        "vmbus_recv_message type 7 size 12",
        "vmbus_process_incoming_message type 7",
        "vmbus_close_channel channel #1",
        "vmbus_recv_message type 11 size 16",
        "vmbus_process_incoming_message type 11",
        f"vmbus_gpadl_teardown gpadl #{gpadl}",
        f"vmbus_gpadl_torndown gpadl #{gpadl}",
        "vmbus_post_msg type 12 size 12",
        "vmbus_msg_cb message status 0",
    ]
