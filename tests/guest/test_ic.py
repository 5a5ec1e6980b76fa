"""Heartbeat, shutdown and time synchronisation, against a guest that answers as hv_utils does."""

from __future__ import annotations

from struct import pack

import pytest

from pyvmm.devices.ic import Heartbeat, Shutdown, ShutdownKind, TimeSync
from pyvmm.devices.ic.heartbeat import Health
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import (
    FAILED,
    HeartbeatBody,
    IcHeader,
    IcType,
    Negotiate,
    ShutdownBody,
    TimeBody,
    TimeFlag,
    TimeReferenceBody,
)
from pyvmm.devices.ic.timesync import UNIX_EPOCH_100NS
from pyvmm.errors import GuestError
from tests.support.fake_guest import FakeGuest

RING = 4


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (IcHeader, 28),
        (Negotiate, 8),
        (HeartbeatBody, 40),
        (ShutdownBody, 2060),
        (TimeBody, 25),
        (TimeReferenceBody, 22),
    ],
)
def test_sizes_are_those_of_linux(kind: type[IcHeader], size: int) -> None:
    assert size == kind.SIZE


# Heartbeat


def test_beats_every_two_seconds_and_counts_answers(guest: FakeGuest) -> None:
    heartbeat = Heartbeat()
    guest.open(heartbeat, ring_pages=RING).accept_versions()
    guest.advance(seconds=4.5)
    first, _second = guest.take(HeartbeatBody, 2)
    guest.answer(HeartbeatBody(first.sequence + 1))
    assert (heartbeat.beats, heartbeat.sequence) == (1, 1)


def test_a_guest_that_stops_answering_is_lost_and_may_come_back(guest: FakeGuest) -> None:
    heartbeat = Heartbeat()
    guest.open(heartbeat, ring_pages=RING).accept_versions()
    assert heartbeat.health is Health.NO_CONTACT
    guest.advance(seconds=2)
    guest.take(HeartbeatBody)
    guest.answer(HeartbeatBody(1))
    assert heartbeat.health is Health.OK
    guest.advance(seconds=12)
    assert heartbeat.health is Health.LOST
    guest.take(HeartbeatBody, 6)
    guest.answer(HeartbeatBody(2))
    assert heartbeat.health is Health.OK


def test_silence_does_not_fill_the_ring(guest: FakeGuest) -> None:
    guest.open(Heartbeat(), ring_pages=RING).accept_versions()
    guest.advance(seconds=3600)
    guest.take(HeartbeatBody, Heartbeat.OUTSTANDING_LIMIT)


def test_nothing_is_sent_after_close_and_a_new_driver_starts_afresh(guest: FakeGuest) -> None:
    heartbeat = Heartbeat()
    guest.open(heartbeat, ring_pages=RING).accept_versions()
    guest.advance(seconds=2)
    guest.take(HeartbeatBody)
    guest.answer(HeartbeatBody(1))
    guest.close()
    guest.advance(seconds=10)
    assert heartbeat.health is Health.NO_CONTACT
    guest.open(heartbeat, ring_pages=RING).accept_versions()
    guest.advance(seconds=2)
    (beat,) = guest.take(HeartbeatBody)
    assert beat.sequence == 0


# Shutdown


@pytest.mark.parametrize(("kind", "flags"), [(ShutdownKind.POWER_OFF, 1), (ShutdownKind.RESTART, 3)])
def test_shutdown_is_requested_once_and_answered(guest: FakeGuest, kind: ShutdownKind, flags: int) -> None:
    shutdown, answers = Shutdown(), []
    assert not shutdown.request(kind)
    guest.open(shutdown, ring_pages=RING)
    assert not shutdown.request(kind), "versions are not agreed yet"
    guest.driver.accept_versions()
    assert shutdown.ready
    assert shutdown.request(kind, answers.append)
    assert not shutdown.request(kind), "one at a time"
    (body,) = guest.take(ShutdownBody)
    assert body.flags == flags
    guest.answer(body)
    assert (answers, shutdown.status) == ([0], 0)
    assert shutdown.request(kind)


def test_a_guest_may_refuse_to_shut_down(guest: FakeGuest) -> None:
    shutdown, answers = Shutdown(), []
    guest.open(shutdown, ring_pages=RING).accept_versions()
    shutdown.request(ShutdownKind.POWER_OFF, answers.append)
    (body,) = guest.take(ShutdownBody)
    guest.answer(body, status=FAILED)
    assert answers == [FAILED]


def test_a_close_forgets_the_request(guest: FakeGuest) -> None:
    shutdown = Shutdown()
    guest.open(shutdown, ring_pages=RING).accept_versions()
    shutdown.request(ShutdownKind.POWER_OFF)
    guest.close()
    assert not shutdown.ready
    guest.open(shutdown, ring_pages=RING).accept_versions()
    assert shutdown.request(ShutdownKind.POWER_OFF)


# Time synchronisation


def test_the_clock_is_set_at_start_and_sampled_from_then_on(guest: FakeGuest) -> None:
    timesync = TimeSync(clock_ns=lambda: 1_000_000_000, reference_time=lambda: 77)
    guest.open(timesync, ring_pages=RING).accept_versions()
    (first,) = guest.take(TimeReferenceBody)
    assert (first.host_time, first.reference_time) == (UNIX_EPOCH_100NS + 10_000_000, 77)
    assert first.flags == TimeFlag.SYNC
    guest.answer(first)
    guest.advance(seconds=11)
    assert [body.flags for body in guest.take(TimeReferenceBody, 2)] == [TimeFlag.SAMPLE] * 2
    assert (timesync.samples, timesync.answers) == (3, 1)


def test_without_a_reference_counter_the_older_form_is_used(guest: FakeGuest) -> None:
    timesync = TimeSync(clock_ns=lambda: 0)
    guest.open(timesync, ring_pages=RING).accept_versions()
    (body,) = guest.take(TimeBody)
    assert (body.host_time, body.flags) == (UNIX_EPOCH_100NS, TimeFlag.SYNC)


def test_samples_stop_for_a_guest_that_does_not_answer(guest: FakeGuest) -> None:
    timesync = TimeSync(clock_ns=lambda: 0)
    guest.open(timesync, ring_pages=RING).accept_versions()
    guest.advance(seconds=1000)
    guest.take(TimeBody, TimeSync.OUTSTANDING_LIMIT)
    assert timesync.sync(), "but a wanted step is sent"


# The frame


def negotiation(frameworks: int, messages: int, *pairs: int) -> bytes:
    return pack(f"<HHI{len(pairs)}H", frameworks, messages, 0, *pairs)


@pytest.mark.parametrize(
    "answer",
    [
        negotiation(0, 0),  # nothing in common
        negotiation(1, 1, 3, 0),  # a version is missing
        negotiation(1, 1, 9, 9, 3, 0),
        negotiation(1, 1, 3, 0, 9, 9),
        negotiation(0xFFFF, 0xFFFF, 3, 0, 3, 0),
        b"",
    ],
)
def test_a_guest_without_a_common_version_hears_no_more(guest: FakeGuest, answer: bytes) -> None:
    driver = guest.open(Heartbeat(), ring_pages=RING)
    driver.is_ic = True
    driver.take_bytes()
    driver.answer(answer)
    guest.advance(seconds=10)
    driver.expect_nothing()


def frame(guest: FakeGuest, **changes: int) -> bytes:
    """A response to the first beat, with some fields changed."""
    guest.open(Heartbeat(), ring_pages=RING).accept_versions()
    guest.advance(seconds=2)
    guest.take_bytes()
    header = IcHeader.parse(guest.driver.last_ic)
    header.flags = 5
    for name, value in changes.items():
        setattr(header, name, value)
    return header.build() + HeartbeatBody(1).build()


@pytest.mark.parametrize(
    "changes",
    [{"flags": 3}, {"transaction": 99}, {"type": IcType.SHUTDOWN}, {"type": 0xFFFF}, {"size": 41}, {"size": 7}],
)
def test_a_bad_answer_is_refused(guest: FakeGuest, changes: dict[str, int]) -> None:
    payload = frame(guest, **changes)
    heartbeat = guest.driver.device
    assert isinstance(heartbeat, Heartbeat)
    with pytest.raises(GuestError):
        heartbeat.received(payload)
    assert heartbeat.beats == 0


def test_an_answer_is_taken_once(guest: FakeGuest) -> None:
    payload = frame(guest)
    guest.send(payload)
    guest.send(payload)
    heartbeat = guest.driver.device
    assert isinstance(heartbeat, Heartbeat)
    assert heartbeat.beats == 1


@pytest.mark.parametrize("length", range(0, 28, 3))
def test_a_cut_frame_is_refused(guest: FakeGuest, length: int) -> None:
    guest.open(Heartbeat(), ring_pages=RING).accept_versions()
    link = IcLink(guest.driver.channel, [(3, 0)])
    with pytest.raises(GuestError):
        link.read(bytes(length))
