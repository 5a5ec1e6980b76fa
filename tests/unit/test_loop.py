"""The event loop: descriptors, timers, posted work, and time that tests move."""

from __future__ import annotations

import gc
import os
import select
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from pyvmm.loop import CANCELLED_LIMIT, SLICE_CALLBACKS, Loop, Pending, Timers


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


# Bounded turns: what a guest queues does not keep descriptors and timers waiting


def test_a_turn_runs_a_slice_of_what_is_posted(loop: Loop) -> None:
    ran: list[int] = []
    for n in range(3 * SLICE_CALLBACKS):
        loop.post(ran.append, n)
    loop.step(0)
    assert ran == list(range(SLICE_CALLBACKS))
    for _ in range(2):
        loop.step()  # the rest is ready: it does not wait
    assert len(ran) == 3 * SLICE_CALLBACKS


def test_slow_work_ends_the_slice(loop: Loop) -> None:
    ran: list[int] = []
    for n in range(10):
        loop.post(lambda n=n: (time.sleep(0.02), ran.append(n)))
    loop.step(0)
    assert ran == [0]


def test_descriptors_and_timers_have_their_turn_between_slices_of_posted_work(clock: Clock, loop: Loop) -> None:
    order: list[str] = []
    fd = os.eventfd(1)
    loop.add_reader(fd, lambda: order.append("fd"))
    loop.every(1.0, lambda: order.append("timer"))
    for _ in range(10):
        loop.post(lambda: (time.sleep(0.02), order.append("work")))
    for clock.now in (1.0, 2.0, 3.0):
        loop.step()
    assert order == ["fd", "timer", "work"] * 3
    os.close(fd)


def test_a_timer_that_is_always_due_does_not_keep_descriptors_waiting(loop: Loop) -> None:
    seen: list[str] = []
    fd = os.eventfd(1)
    loop.add_reader(fd, lambda: seen.append("fd"))

    def again() -> None:
        seen.append("timer")
        loop.after(0, again)

    loop.after(0, again)
    loop.step()
    loop.step()
    assert seen == ["fd", "timer"] * 2
    os.close(fd)


def test_slow_timers_end_the_slice(clock: Clock) -> None:
    timers, ran = Timers(clock), []
    for n in range(3):
        timers.after(0, lambda n=n: (time.sleep(0.02), ran.append(n)))
    timers.run_due()
    assert ran == [0]
    timers.run_due()
    timers.run_due()
    assert ran == [0, 1, 2]


def test_what_a_signal_posts_goes_before_all_that_waits(loop: Loop) -> None:
    ran: list[str] = []
    for _ in range(3 * SLICE_CALLBACKS):
        loop.post(ran.append, "flood")
    loop.post_first(ran.append, "signal")
    loop.step(0)
    assert ran[0] == "signal"


def test_a_cancelled_timer_lets_go_of_its_callback_at_once(clock: Clock) -> None:
    class Channel:
        def poll(self) -> None: ...

    timers, channel = Timers(clock), Channel()
    held = weakref.ref(channel)
    timer = timers.every(1.0, channel.poll)
    del channel
    gc.collect()
    assert held() is not None
    timer.cancel()
    gc.collect()
    assert held() is None


def test_cancelled_timers_do_not_pile_up(clock: Clock) -> None:
    timers, ran = Timers(clock), []
    timers.after(5.0, lambda: ran.append("live"))
    for _ in range(100_000):
        timers.every(1000.0, lambda: pytest.fail("cancelled")).cancel()
    assert len(timers._heap) <= CANCELLED_LIMIT + 2
    clock.now = 2000.0
    timers.run_due()
    assert ran == ["live"]
    assert timers.next_due() is None


def test_a_timer_cancelled_after_it_ran_leaves_the_count_right(clock: Clock) -> None:
    timers = Timers(clock)
    for _ in range(1000):
        timer = timers.after(0, lambda: None)
        timers.run_due()
        timer.cancel()
    live = [timers.after(1.0, lambda: None) for _ in range(3)]
    assert timers._cancelled == 0
    live[0].cancel()
    assert timers._cancelled == 1


def test_requests_for_the_same_work_are_one_until_it_has_run(loop: Loop) -> None:
    ran: list[int] = []
    pending = Pending(loop, ran.append, 1)
    for _ in range(1000):
        pending.ask()
    assert len(loop._posted) == 1
    loop.step(0)
    assert ran == [1]
    pending.ask()
    loop.step(0)
    assert ran == [1, 1]


def test_what_a_turn_posts_needs_no_wake_up_and_what_a_thread_posts_does(loop: Loop) -> None:
    ran: list[str] = []
    loop.post(lambda: loop.post(ran.append, "in a turn"))
    loop.step(0)
    assert not loop._poll.poll(0)
    loop.step()
    for name in ("a", "b"):
        thread = threading.Thread(target=loop.post, args=(ran.append, name))
        thread.start()
        thread.join()
    loop.step()
    assert ran == ["in a turn", "a", "b"]
    assert not loop._poll.poll(0)


def test_posts_of_many_threads_all_run(loop: Loop) -> None:
    ran: list[int] = []
    threads = [
        threading.Thread(target=lambda: [loop.post(ran.append, 1) for _ in range(500)] and None) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while len(ran) < 2000:
        loop.step(5)
    for thread in threads:
        thread.join()


def test_work_asked_for_while_it_runs_runs_again(loop: Loop) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(1)
        if len(ran) < 3:
            pending.ask()

    pending = Pending(loop, work)
    pending.ask()
    for _ in range(5):
        loop.step(0)
    assert len(ran) == 3


def test_cancelled_work_does_not_run(loop: Loop) -> None:
    pending = Pending(loop, lambda: pytest.fail("cancelled"))
    pending.ask()
    pending.cancel()
    loop.step(0)


def test_the_loop_counts_its_turns_and_knows_the_longest(loop: Loop) -> None:
    during: list[float | None] = []
    loop.post(lambda: (time.sleep(0.03), during.append(loop.turn_began)))
    loop.step(0)
    loop.step(0)
    assert loop.turns == 2
    assert 0.03 <= loop.longest_turn < 3
    assert during[0] is not None
    assert loop.turn_began is None


def test_a_renewed_loop_shares_nothing_with_the_one_it_was_forked_from(clock: Clock, loop: Loop) -> None:
    shared_set, shared_wake = os.dup(loop._poll.fileno()), os.dup(loop._wake)
    reader, writer = os.pipe()
    seen: list[bytes] = []
    loop.add_reader(reader, lambda: seen.append(os.read(reader, 1)))
    loop.after(5, lambda: seen.append(b"timer"))
    loop.post(lambda: seen.append(b"posted"))
    loop.renew()
    loop.step(0)
    os.write(writer, b"x")
    clock.now = 5
    loop.step(0)
    loop.remove_reader(reader)
    assert seen == [b"posted", b"x", b"timer"]
    loop.post(lambda: None)
    assert os.eventfd_read(shared_wake) == 1, "what was posted before"
    os.write(writer, b"y")
    with select.epoll.fromfd(shared_set) as before:
        assert [fd for fd, _ in before.poll(0)] == [reader]
    for fd in (shared_wake, reader, writer):
        os.close(fd)


def test_a_loop_with_work_or_a_ready_descriptor_is_not_idle(loop: Loop) -> None:
    reader, writer = os.pipe()
    loop.add_reader(reader, lambda: os.read(reader, 1))
    assert loop.idle
    os.write(writer, b"x")
    assert not loop.idle
    loop.step(0)
    assert loop.idle
    loop.post(lambda: None)
    assert not loop.idle
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
