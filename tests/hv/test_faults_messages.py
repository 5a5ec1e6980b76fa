"""Faults in messages of the bus: types, lengths, offers and rescinds that no host should send."""

from __future__ import annotations

from struct import pack
from uuid import UUID, uuid4

import pytest

from pyvmm.vmbus.protocol import MessageType, Rescind
from tests.hv.guest_actions import NO_DRIVER, devices, in_background
from tests.hv.outcomes import breaks, fault, may_break, oopses, panics, survives, warns


@pytest.mark.pyvmm(engine="user")  # the kernel engine offers timers
@fault("V8", "a timer message, though no synthetic timer was offered")
def test_timer_message_without_a_timer(host, outcome):
    host.synic.timer_message()
    outcome(panics("vmbus_isr"), k7_3=survives())


@fault("new", "a RESCIND in a hypervisor message of another type (GPA intercept)")
def test_rescind_in_a_message_of_another_type(vm, host, outcome):
    before = devices(vm)
    host.synic.post(0x80000001, Rescind(host.vmbus.relid("timesync")).build())
    vm.run_for(1)
    outcome.shows("the type of the SynIC message is not looked at: it is obeyed", devices(vm) == before - 1)


@fault("new", "a channel message of type 0")
def test_message_type_0(host, outcome):
    host.vmbus.send_type(0, bytes(100))
    outcome(survives())


@fault("new", "a channel message of a type that does not exist yet (40)")
def test_message_type_40(host, outcome):
    host.vmbus.send_type(40, bytes(100))
    outcome(warns("unknown msgtype|vmbus_on_msg_dpc"))


@fault("new", "a channel message of type 0xffffffff")
def test_message_type_all_ones(host, outcome):
    host.vmbus.send_type(0xFFFFFFFF, bytes(100))
    outcome(warns("unknown msgtype|vmbus_on_msg_dpc"))


@fault("new", "an OFFER of 12 bytes")
def test_offer_cut_short(host, outcome):
    host.vmbus.send_type(MessageType.OFFER, bytes(4))
    outcome(warns("vmbus_on_msg_dpc|message too short"))


@fault("new", "a message of no bytes")
def test_empty_message(host, outcome):
    host.vmbus.send(b"")
    outcome(warns("vmbus_on_msg_dpc"))


@fault("new", "a message whose header says 255 bytes, of 240 there are")
def test_payload_size_above_240(host, outcome):
    host.synic.overwrite(1, pack("<II", 2, 0) + bytes(232), size=255)
    outcome(warns("vmbus_on_msg_dpc|payload size is too large"))


@fault("new", "the pending flag of a message slot is set, and no message waits")
def test_pending_flag_without_a_message(host, outcome):
    for _ in range(20):
        host.vmbus.rescind(1500)
        host.synic.set_pending()
    outcome(survives())


@fault("new", "a message in the slot of a SINT that the guest does not use")
def test_message_of_another_sint(host, outcome):
    host.synic.overwrite(1, Rescind(1).build(), sint=5)
    outcome(survives())


@fault("new", "the SINT's interrupt 200 times, with neither message nor event")
def test_interrupts_without_a_reason(vm, host, outcome):
    for _ in range(200):
        host.synic.interrupt()
        vm.run_for(0.002)
    outcome(survives(), settle=0.5)


@fault("new", "every one of the 2048 event flags")
def test_all_event_flags(host, outcome):
    for flag in range(2048):
        host.synic.signal(flag)
    outcome(survives())


@fault("V18", "RESCIND of a relid beyond the table (2048)")
def test_rescind_of_a_relid_beyond_the_table(host, outcome):
    host.vmbus.rescind(2048)
    outcome(warns("relid2channel"))


@fault("V18", "RESCIND of a relid beyond the table, 20 times")
def test_rescind_floods_the_log(vm, host, outcome):
    for _ in range(20):
        host.vmbus.rescind(0xFFFFFFFF)
    vm.run_for(2)
    count = int(vm.guest.sh("dmesg | grep -c 'WARNING:.*relid2channel' || true"))
    outcome.shows("a backtrace for each", count == 20, figure=f"{count} backtraces")


@fault("new", "RESCIND of a relid that was never offered, 300 times")
def test_rescind_of_unknown_relids(host, outcome):
    for relid in range(1000, 1300):
        host.vmbus.rescind(relid)
    outcome(survives())


@fault("new", "RESCIND twice for a device")
def test_rescind_twice(host, outcome):
    relid = host.vmbus.relid("heartbeat")
    host.vmbus.rescind(relid)
    host.vmbus.rescind(relid)
    outcome(survives())


@fault("V17", "OFFER with a relid beyond the table (5000)")
def test_offer_beyond_the_table(host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=5000)
    outcome(warns("vmbus_channel_map_relid|vmbus_onoffer"))


@fault("V17", "OFFER with a relid beyond the table, then its RESCIND")
def test_offer_beyond_the_table_is_never_rescinded(vm, host, outcome):
    before = devices(vm)
    host.vmbus.offer(NO_DRIVER, relid=5000)
    vm.run_for(1)
    offered = devices(vm)
    host.vmbus.rescind(5000)
    vm.run_for(1)
    outcome.shows("the device is kept, and stays for ever", (offered, devices(vm)) == (before + 1, before + 1))


@fault("new", "OFFER with relid 0")
def test_offer_with_relid_0(host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=0)
    outcome(survives())


@fault("new", "OFFER of a device type that has no driver")
def test_offer_without_a_driver(host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=700)
    outcome(survives())


@fault("new", "OFFER with the live balloon's instance GUID under another relid")
def test_offer_with_a_live_instance(host, outcome):
    host.vmbus.offer_again("hv-balloon", relid=700)
    outcome(warns("vmbus_onoffer"))


@fault("new", "OFFER with the live balloon's instance GUID, then an event and a request under its old relid")
def test_offer_with_a_live_instance_takes_its_events(vm, host, outcome):
    host.vmbus.offer_again("hv-balloon", relid=700)
    vm.run_for(1)
    host.balloon.send_balloon(16)
    vm.run_for(2)
    outcome.shows("the device gets no event any more", not host.balloon.answers(7))


@fault("new", "OFFER of another device under the live balloon's relid")
def test_offer_with_a_live_relid(vm, host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=host.vmbus.relid("hv-balloon"))
    vm.run_for(1)
    host.balloon.send_balloon(16)
    vm.run_for(2)
    outcome.shows("the table's entry is overwritten: the balloon gets no event any more", not host.balloon.answers(7))


@fault("new", "OFFER of another device under the live balloon's relid, then RESCIND of that relid")
def test_rescind_of_a_relid_offered_twice(host, outcome):
    relid = host.vmbus.relid("hv-balloon")
    host.vmbus.offer(NO_DRIVER, relid=relid)
    host.vmbus.rescind(relid)
    host.vmbus.rescind(relid)
    outcome(survives(), k5_10=may_break("vmbus_onoffer_rescind"))


@fault("new", "OFFER with a sub-channel's index, of a device without a primary channel")
def test_offer_of_a_sub_channel_alone(host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=700, sub_channel=3)
    outcome(survives())


@fault("new", "OFFER of a sub-channel of the balloon, which asked for none, then its RESCIND")
def test_offer_of_a_sub_channel_without_a_request(vm, host, outcome):
    balloon = host.device("hv-balloon").offer
    host.vmbus.offer(balloon.type, instance=balloon.instance, relid=700, sub_channel=1)
    vm.run_for(0.5)
    host.vmbus.rescind(700)
    outcome(survives())


@fault("new", "OFFER of a confidential external memory channel (flag 4) to an ordinary guest, then a RESCIND")
def test_confidential_offer_stops_rescinds(vm, host, outcome):
    host.vmbus.offer(NO_DRIVER, relid=700, flags=4)
    vm.run_for(1)
    before = devices(vm)
    host.vmbus.rescind(host.vmbus.relid("timesync"))
    vm.run_for(3)
    outcome.shows("no RESCIND is done any more", devices(vm) == before, only=("7.2", "7.3"))


@fault("new", "OFFER and RESCIND of the same device at once, 30 times")
def test_offers_rescinded_at_once(vm, host, outcome):
    before = devices(vm)
    for relid in range(700, 730):
        host.vmbus.offer(NO_DRIVER, relid=relid)
        host.vmbus.rescind(relid)
    for _ in range(10):  # on a loaded computer the last ones take their time
        vm.run_for(2)
        if devices(vm) == before:
            break
    outcome.shows("devices are left over", devices(vm) != before, only=())


@fault("B3", "a second balloon device, that negotiates, then RESCIND of both")
def test_second_balloon(vm, host, outcome):
    second = host.vmbus.add("hv-balloon", answers=balloon_answers)
    vm.run_for(1.5)
    host.vmbus.remove(second)
    vm.run_for(1)
    host.vmbus.remove("hv-balloon")
    outcome(breaks())


@fault("B3", "OFFER of a second balloon device whose channel cannot be opened, then its RESCIND")
def test_second_balloon_that_does_not_open(vm, host, outcome):
    host.vmbus.offer("hv-balloon", relid=700)
    vm.run_for(1)
    host.vmbus.rescind(700)
    outcome(oopses("list_|hv_balloon"))


@fault("new", "a second heartbeat device, then RESCIND of both")
def test_second_heartbeat(vm, host, outcome):
    second = host.vmbus.add("heartbeat", name="second")
    vm.run_for(1)
    host.vmbus.remove(second)
    vm.run_for(1)
    host.vmbus.remove("heartbeat")
    outcome(breaks("kfree|free_large_kmalloc|slab"))


@fault("new", "a second time synchronisation device, then RESCIND of both")
def test_second_timesync(vm, host, outcome):
    second = host.vmbus.add("timesync", name="second")
    vm.run_for(1)
    host.vmbus.remove(second)
    vm.run_for(1)
    host.vmbus.remove("timesync")
    outcome(breaks("ptp|hv_utils"))


@fault("new", "a second shutdown device, then RESCIND of both")
def test_second_shutdown(vm, host, outcome):
    second = host.vmbus.add("shutdown", name="second")
    vm.run_for(1)
    host.vmbus.remove(second)
    vm.run_for(1)
    host.vmbus.remove("shutdown")
    outcome(breaks("kfree|free_large_kmalloc|slab"))


@fault("V26", "OFFER of a heartbeat with a monitor bit, which no host polls")
def test_monitored_offer_that_is_not_polled(vm, host, outcome):
    host.vmbus.remove("heartbeat")
    vm.run_for(1)
    host.vmbus.change(MessageType.OFFER, lambda message: message[:188] + b"\0\1" + message[190:], count=1)
    device = host.vmbus.add(UUID("57164f39-9115-4e78-ab55-382f3bd5422d"), instance=uuid4(), name="monitored")
    vm.until(lambda: device.channel, 5, "open channel of the monitored heartbeat")
    device.channel.send(
        bytes.fromhex("01000000 20000000 0300 0000 0000 0000 0000 0c00 00000000 01 03 0000")
        + pack("<HHIHHHH", 1, 1, 0, 3, 0, 3, 0)
    )
    vm.run_for(2)
    outcome.shows("the guest sets a bit and never signals", device.channel.signals_in == 0)


@pytest.mark.long
@fault("V24", "no buffer (status 0x13) for the UNLOAD of a guest that panics, each time")
def test_unload_of_a_panic_is_refused(vm, host, outcome):
    vm.faults.add("hypercall.out", "change", call="POST_MESSAGE", to={"status": 0x13})
    vm.run(in_background("echo c >/proc/sysrq-trigger"))
    host.vmbus.wait_for(MessageType.UNLOAD, 10)
    vm.run_for(15)
    tries = len(host.vmbus.requests(MessageType.UNLOAD))
    outcome.shows("the panic goes on trying, for minutes", not vm.ended, figure=f"{tries} tries in 15 s")


@fault("new", "answers without a request: version, GPADL, open, teardown, modify, all offers, TL connect")
def test_answers_without_a_request(host, outcome):
    host.vmbus.version_response(1, 4)
    host.vmbus.gpadl_created(1, 0xE1E10, 0xC0000001)
    host.vmbus.open_result(1, status=5)
    host.vmbus.gpadl_torndown(0xE1E10)
    host.vmbus.modify_channel_response(1, 3)
    host.vmbus.all_offers()
    host.vmbus.send_type(MessageType.TL_CONNECT_RESULT, bytes(36))
    outcome(survives(), k5_10=warns("unknown msgtype=24"))  # MODIFYCHANNEL_RESPONSE came with VMBus 5.3


@fault("new", "messages that only a guest sends: OPEN, CLOSE, GPADL_HEADER, UNLOAD, INITIATE_CONTACT")
def test_messages_of_the_guest(host, outcome):
    for kind in (MessageType.OPEN, MessageType.CLOSE, MessageType.GPADL_HEADER, MessageType.UNLOAD):
        host.vmbus.send_type(kind, bytes(140))
    host.vmbus.send_type(MessageType.INITIATE_CONTACT, bytes(32))
    outcome(survives())


def balloon_answers(payload):
    """What a balloon device answers in its negotiation: yes."""
    kind, trans_id = int.from_bytes(payload[:2], "little"), payload[4:8]
    if kind in (1, 3):
        yield pack("<HH", kind + 1, 16) + trans_id + pack("<Q", 1)
