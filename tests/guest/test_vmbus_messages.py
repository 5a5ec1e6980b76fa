"""hv_vmbus, played by FakeGuest, against the whole bus: messages, their queue and GPADLs."""

from __future__ import annotations

import errno
from collections.abc import Callable
from uuid import UUID

import pytest

from pyvmm.vmbus import mailbox
from pyvmm.vmbus import protocol as p
from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import Recorder


@pytest.mark.parametrize(
    ("connection", "kind", "size", "status"),
    [(1, 1, 8, 0), (4, 1, 240, 0), (5, 1, 8, 0), (0, 1, 8, 0x12), (2, 1, 8, 0x12), (17, 1, 8, 0x12), (1, 2, 8, 3),
     (1, 0x80000000, 8, 3), (1, 1, 7, 3), (1, 1, 0, 3), (1, 1, 241, 3)],
)  # fmt: skip
def test_status_of_post_message(guest: FakeGuest, connection: int, kind: int, size: int, status: int) -> None:
    assert guest.partition.hypercall_post(connection, bytes(size), kind) == status
    guest.loop.run()


def test_queue_of_messages_is_bounded_and_contact_always_gets_in(guest: FakeGuest) -> None:
    statuses = [guest.post(bytes(8), 1) for _ in range(mailbox.RECEIVE_QUEUE_LIMIT + 2)]
    assert statuses.count(0x13) == 2
    assert guest.contact().supported


def test_guest_that_does_not_read_its_messages_is_not_served(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    guest.connect()
    guest.partition.slots_busy = True
    request = p.TlConnectRequest(UUID(int=1), UUID(int=2)).build()
    statuses, most = [], mailbox.OUTBOX_LIMIT + mailbox.RECEIVE_QUEUE_LIMIT
    for _ in range(most + 10):
        statuses.append(guest.post(request))
        guest.loop.run()
    assert statuses.count(0) <= most + 2
    assert statuses[-1] == 0x13
    for _ in range(most + 10):
        guest.partition.free_slots()
        guest.loop.run()
    assert len(guest.inbox) == statuses.count(0)
    guest.connect().open(device)


def test_message_the_partition_drops_is_counted_and_the_next_goes_out(guest: FakeGuest) -> None:
    def dropped(vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        done(-errno.EINVAL)

    guest.partition.post_message = dropped  # type: ignore[method-assign]
    guest.post(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
    guest.loop.run()
    assert guest.bus.refused["POST"] == 1
    del guest.partition.post_message  # type: ignore[misc]
    assert guest.contact().supported


def test_late_word_on_a_dropped_message_is_ignored(guest: FakeGuest) -> None:
    posted: list[tuple[int, Callable[[int], None]]] = []

    def keep(vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None:
        posted.append((payload[0], done))

    guest.partition.post_message = keep  # type: ignore[method-assign]
    contact = p.InitiateContact(0x50003, 0, 2, 0, 0)
    guest.request(contact, 4)
    guest.request(contact, 4)
    guest.request(p.RequestOffers(), 5)
    posted[0][1](0)
    assert [kind for kind, _ in posted] == [15, 15]
    posted[1][1](0)
    assert [kind for kind, _ in posted] == [15, 15, 4]


def test_unload_is_served_though_the_slots_are_full(guest: FakeGuest, device: Recorder) -> None:
    guest.open(device)
    guest.partition.slots_busy = True
    for _ in range(200):
        guest.post(p.TlConnectRequest(UUID(int=1), UUID(int=2)))
        guest.loop.run()
    guest.request(p.Unload())
    assert device.calls == ["opened", "closed"]
    guest.partition.free_slots()
    assert [int.from_bytes(m[:4], "little") for _, m in guest.inbox] == [23, 17]


def test_large_gpadl_comes_in_many_messages(device: Recorder) -> None:
    guest = FakeGuest(memory_mib=64)
    guest.open(device, ring_pages=4095).send(b"12345678")
    assert device.payloads == [b"12345678"]


def test_ring_over_memory_that_went_away_is_not_opened(guest: FakeGuest, device: Recorder) -> None:
    guest.bus.add(device)
    guest.connect()
    relid = guest.find_offer(device).relid
    handle = guest.lend(relid, guest.pages(4))
    guest.memory.remove(next(iter(guest.memory)))
    guest.request(p.OpenChannel(relid, relid, handle, 0, 2, b""))
    assert guest.expect(p.OpenResult).status
    assert device.calls == []
