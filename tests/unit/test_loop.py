"""The event loop: descriptors, timers, posted work, and time that tests move."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from pyvmm.loop import Loop, Timers


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    made.close()


def test_timers_run_when_due_and_in_order(clock: Clock) -> None:
    timers, ran = Timers(clock), []
    timers.after(2.0, lambda: ran.append("b"))
    timers.after(1.0, lambda: ran.append("a"))
    timers.after(2.0, lambda: ran.append("c"))
    timers.run_due()
    assert ran == []
    clock.now = 2.0
    timers.run_due()
    assert ran == ["a", "b", "c"]


def test_a_cancelled_timer_never_runs(clock: Clock) -> None:
    timers, ran = Timers(clock), []
    timer = timers.after(1.0, lambda: ran.append(1))
    timer.cancel()
    timer.cancel()
    assert timers.next_due() is None
    clock.now = 5
    timers.run_due()
    assert ran == []


def test_a_periodic_timer_does_not_make_up_for_lost_time(clock: Clock) -> None:
    timers, ran = Timers(clock), []
    timers.every(1.0, lambda: ran.append(clock.now))
    clock.now = 5.5
    timers.run_due()
    assert len(ran) <= 2
    ran.clear()
    clock.now += 1.0
    timers.run_due()
    assert len(ran) == 1


def test_a_periodic_timer_can_cancel_itself(clock: Clock) -> None:
    timers, ran = Timers(clock), []

    def once() -> None:
        ran.append(1)
        timer.cancel()

    timer = timers.every(1.0, once)
    for clock.now in (1.0, 2.0, 3.0):
        timers.run_due()
    assert ran == [1]


def test_posted_work_runs_in_order_on_the_loop_s_thread(loop: Loop) -> None:
    ran: list[tuple[int, int]] = []

    def work(n: int) -> None:
        ran.append((n, threading.get_ident()))

    other = threading.Thread(target=lambda: [loop.post(work, n) for n in range(3)])
    other.start()
    other.join()
    loop.step(0)
    assert ran == [(n, threading.get_ident()) for n in range(3)]


def test_work_posted_by_work_waits_for_the_next_step(loop: Loop) -> None:
    ran: list[int] = []
    loop.post(lambda: loop.post(ran.append, 1))
    loop.step(0)
    assert ran == []
    loop.step(0)
    assert ran == [1]


def test_a_reader_is_called_while_there_is_something_to_read(loop: Loop) -> None:
    fd = os.eventfd(0)
    seen: list[int] = []
    loop.add_reader(fd, lambda: seen.append(os.eventfd_read(fd)))
    loop.step(0)
    os.eventfd_write(fd, 3)
    loop.step(0)
    assert seen == [3]
    loop.remove_reader(fd)
    os.eventfd_write(fd, 1)
    loop.step(0)
    assert seen == [3]
    os.close(fd)


def test_a_writer_is_called_while_there_is_room(loop: Loop) -> None:
    reader, writer = os.pipe()
    calls: list[int] = []
    loop.add_writer(writer, lambda: calls.append(1))
    loop.step(0)
    loop.remove_writer(writer)
    loop.remove_writer(writer)
    loop.step(0)
    assert calls == [1]
    os.close(reader)
    os.close(writer)


def test_a_hang_up_wakes_the_reader(loop: Loop) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []
    loop.add_reader(reader, lambda: seen.append(os.read(reader, 10)))
    os.close(writer)
    loop.step(0)
    assert seen == [b""]
    loop.remove_reader(reader)
    os.close(reader)


def test_run_ends_at_stop_and_can_run_again(loop: Loop) -> None:
    ran: list[int] = []
    for n in range(2):
        loop.post(ran.append, n)
        loop.post(loop.stop)
        loop.run()
    assert ran == [0, 1]


def test_posting_to_a_closed_loop_is_harmless(clock: Clock) -> None:
    loop = Loop(clock)
    loop.close()
    loop.post(print)
