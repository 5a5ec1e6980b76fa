"""What becomes of a machine whose guest panicked."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.hyperv.crash import CrashReport
from pyvmm.loop import Timers
from pyvmm.machine.panic import CRASH_KERNEL_WAIT, PanicWatch, Policy
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot
from pyvmm.tail import Tail

REPORT = CrashReport((1, 2, 3, 4, 5), "Kernel panic - not syncing: sysrq triggered crash")


class Machine:
    """A guest whose page tables and console a test sets."""

    def __init__(self, policy: Policy) -> None:
        self.now = 0.0
        self.timers = Timers(lambda: self.now)
        self.tables = [0x1000, 0x2000]
        self.console = Tail()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[CrashReport] = []
        self.polls = 0
        self.watch = PanicWatch(
            policy,
            self.timers,
            vcpu_snapshots=self.vcpu_snapshots,
            console=self.console.since,
            emit=self.events.append,
            end=self.ended.append,
        )

    def vcpu_snapshots(self) -> list[VcpuSnapshot]:
        self.polls += 1
        return [VcpuSnapshot(0xFFFFFFFF81000000, each, True, False) for each in self.tables]

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 0.05
            self.timers.run_due()

    @property
    def told(self) -> list[str]:
        return [name for name, _ in self.events]


def test_stop_ends_at_the_report() -> None:
    machine = Machine("stop")
    machine.watch.reported(REPORT)
    assert machine.ended == [REPORT]
    assert machine.events[0][1]["action"] == "poweroff"
    assert machine.polls == 0


def test_keep_lets_the_guest_go_on() -> None:
    machine = Machine("keep")
    machine.watch.reported(REPORT)
    machine.advance(3 * CRASH_KERNEL_WAIT)
    assert (machine.ended, machine.told) == ([], ["GUEST_PANICKED"])
    assert machine.events[0][1] == {
        "action": "run",
        "info": {"type": "hyper-v", "arg1": 1, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5},
        "x-text": REPORT.text,
    }


def test_auto_lets_a_crash_kernel_run() -> None:
    machine = Machine("auto")
    machine.watch.reported(REPORT)
    machine.advance(1.0)
    machine.tables[1] = 0x9000
    machine.advance(3 * CRASH_KERNEL_WAIT)
    assert machine.ended == []
    assert machine.told == ["GUEST_PANICKED", "GUEST_CRASHLOADED"]
    assert machine.watch.report is REPORT, "for the machine's end"


def test_auto_ends_a_machine_whose_kernel_stays() -> None:
    machine = Machine("auto")
    machine.watch.reported(REPORT)
    machine.advance(CRASH_KERNEL_WAIT - 0.5)
    assert machine.ended == []
    assert machine.watch.undecided
    machine.advance(1.0)
    assert machine.ended == [REPORT]


@pytest.mark.parametrize(
    "line", [b"[    9.1] ---[ end Kernel panic - not syncing: x ]---\r\n", b"[ 9.1] Rebooting in 5 seconds..\r\n"]
)
def test_auto_ends_soon_when_the_console_says_that_nothing_comes(line: bytes) -> None:
    machine = Machine("auto")
    machine.console(line)  # of an earlier life, or typed: not after this panic
    machine.watch.reported(REPORT)
    machine.advance(0.5)
    assert machine.ended == []
    machine.console(line)
    machine.advance(0.5)
    assert machine.ended == [REPORT]


def test_a_crash_kernel_that_panics_itself_ends_the_machine() -> None:
    machine = Machine("auto")
    machine.watch.reported(REPORT)
    machine.tables[:] = [0x9000]
    machine.advance(2 * CRASH_KERNEL_WAIT)
    second = CrashReport((9, 0, 0, 0, 0), "Kernel panic in the crash kernel")
    machine.watch.reported(second)
    machine.advance(2 * CRASH_KERNEL_WAIT)
    assert machine.ended == [second]


def test_a_new_life_forgets_the_panic() -> None:
    machine = Machine("auto")
    machine.watch.reported(REPORT)
    machine.watch.reset()
    machine.advance(3 * CRASH_KERNEL_WAIT)
    assert (machine.ended, machine.watch.report, machine.watch.count) == ([], None, 0)


def test_panics_in_a_loop_are_reported_once_a_second_and_the_last_one_always() -> None:
    machine = Machine("keep")
    for number in range(1000):
        machine.watch.reported(CrashReport((number, 0, 0, 0, 0), ""))
        machine.advance(0.05)
    machine.advance(2.0)
    assert 50 <= len(machine.events) <= 53
    assert machine.events[-1][1]["info"]["arg1"] == 999
    assert machine.watch.count == 1000


def test_panics_in_a_loop_start_one_watch() -> None:
    machine = Machine("auto")
    for _ in range(1000):
        machine.watch.reported(REPORT)
    machine.advance(CRASH_KERNEL_WAIT + 1)
    assert machine.ended == [REPORT]
    assert machine.polls < 3 + CRASH_KERNEL_WAIT / 0.2
