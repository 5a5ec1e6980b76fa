"""`Lap`: counts what a process does and waits for, and not what other programs take from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import load
from tests.support.load import Lap

BUSY = "import time\nwhile True: pass"
WORK = 0.2


def work(seconds: float = WORK) -> None:
    """Take that much processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_work_and_sleep_count_in_full() -> None:
    with Lap() as lap:
        work()
    assert WORK * 0.9 <= lap.seconds <= lap.clock
    with Lap() as lap:
        time.sleep(WORK)
    assert lap.seconds >= WORK * 0.5, "a blocked loop is seen"


def test_the_load_of_other_programs_does_not_count() -> None:
    if not load.counts(os.getpid()):
        pytest.skip("this kernel has no /proc/PID/schedstat")
    processor = {min(os.sched_getaffinity(0))}
    before = os.sched_getaffinity(0)
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(3)]
    try:
        for each in others:
            os.sched_setaffinity(each.pid, processor)
        os.sched_setaffinity(0, processor)
        with Lap() as lap:
            work()
    finally:
        os.sched_setaffinity(0, before)
        for each in others:
            each.kill()
            each.wait()
    assert lap.clock > 2 * WORK
    assert WORK * 0.9 <= lap.seconds < 0.6 * lap.clock


def test_the_counts_of_a_process_that_ends_are_kept() -> None:
    program = "import time\nwhile time.process_time() < .3: pass"
    child = subprocess.Popen([sys.executable, "-c", program])
    with Lap(child.pid) as lap:
        assert lap.wait(child, 20) == 0
    assert 0.2 < lap.seconds <= lap.clock


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ({7: (0.0, 2.5), 8: (0.0, 0.0)}, 0.5),  # its main thread was preempted
        ({7: (0.0, 1.0), 8: (0.0, 2.0)}, 1.0),  # the longest wait alone counts: they overlap
        ({7: (2.0, 0.0), 8: (0.0, 2.5)}, 2.0),  # another thread waited while the main thread ran
        ({7: (0.0, 9.0)}, 0.0),
    ],
)
def test_the_longest_wait_is_taken_off_and_the_loops_work_is_left(
    monkeypatch: pytest.MonkeyPatch, after: load.Counts, seconds: float
) -> None:
    clock = iter((10.0, 13.0))
    monkeypatch.setattr(load, "monotonic", lambda: next(clock))
    monkeypatch.setattr(load, "counts", lambda pid: {})
    with Lap(7) as lap:
        monkeypatch.setattr(load, "counts", lambda pid: after if pid == 7 else {})
    assert (lap.clock, lap.seconds) == (3.0, pytest.approx(seconds))


def test_without_the_kernels_counts_a_lap_is_the_clocks_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "counts", lambda pid: {})
    with Lap() as lap:
        work(0.01)
    assert lap.seconds == lap.clock
