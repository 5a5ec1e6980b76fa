"""Floods: a guest that repeats one thing as fast as it can, in a machine of its own process, on any KVM.

Whatever it is, the monitor answers, signals and the time limit end the machine, and memory does not grow.
"""

from __future__ import annotations

import os
import signal
import time
from struct import pack

import pytest

from pyvmm.hyperv.tlfs import Msr
from pyvmm.kvm import Kvm
from pyvmm.launch.debug_lines import RATE
from pyvmm.machine.machine import RESET_SPACING
from tests.support.flooded import Flooded

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

ANSWER_LIMIT = 0.5
"""Seconds from connecting to the answer."""
END_LIMIT = 1.0
"""Seconds from a signal to the end of the process."""
SLACK = 4.0 if os.environ.get("PYVMM_INSIDE_HOST") else 2.0
"""How much slower a loaded test machine may be, or an emulated one."""
FLOOD_SECONDS = 0.6
START_LIMIT = 5.0
"""Seconds from the first line to the first answer."""
GROWTH_LIMIT = 10.0
"""MiB of memory: buffers that a flood fills once. Without bounds it is that in each second."""


def wrmsr(msr: int, value: int) -> str:
    """mov ecx, msr; mov eax, low; mov edx, high; again: wrmsr; jmp again"""
    code = pack("<BIBIBI", 0xB9, msr, 0xB8, value & 0xFFFFFFFF, 0xBA, value >> 32)
    return code.hex() + "0F30 EBFC"


def outb(port: int, *values: int) -> str:
    """mov dx, port; again: (mov al, value; out dx, al) for each; jmp again"""
    loop = "".join(f"B0{value:02X} EE" for value in values)
    back = 256 - 3 * len(values) - 2
    return f"66BA{pack('<H', port).hex()} {loop} EB{back:02X}"


# mov dx, port; mov esi, 0x100000; mov ecx, 64 KiB; again: rep outsb from there; jmp to mov esi
REP_OUTSB = "66BA{port} BE00001000 B900000100 F36E EBF2"


def timers(count: int) -> str:
    """Four periodic timers of `count` * 100 ns, which interrupt by vectors that the guest never takes; jmp $"""
    code = b""
    for timer in range(4):
        for msr, value in ((Msr.STIMER0_CONFIG, 0x1003 | 0x40 + timer << 4), (Msr.STIMER0_COUNT, count)):
            code += pack("<BIBIBI", 0xB9, msr + 2 * timer, 0xB8, value, 0xBA, 0) + b"\x0f\x30"
    return code.hex() + "EBFE"


FLOODS = {
    "reset MSR": wrmsr(Msr.RESET, 1),
    "triple fault": "0F0B",  # ud2 without an interrupt table
    "keyboard controller's reset": outb(0x64, 0xFE),
    "reset port": outb(0xCF9, 0x02, 0x06),
    "EOM": wrmsr(Msr.EOM, 0),
    "SCONTROL": wrmsr(Msr.SCONTROL, 1),
    "SIMP": wrmsr(Msr.SIMP, 0x3001),
    "SINT2": wrmsr(Msr.SINT0 + 2, 0xF3),
    "crash": wrmsr(Msr.CRASH_CTL, 1 << 63),
    "console": outb(0x3F8, 0x41),
    "console, lines": outb(0x3F8, 0x0A),
    "console, strings": REP_OUTSB.format(port="F803"),
    "agent, lines": outb(0x2F8, 0x0A, 0x78),
    "agent, strings": REP_OUTSB.format(port="F802"),
    "interrupt enable register": outb(0x3F9, 0x00, 0x02),
    "clock": outb(0x71, 0x12),
    "unclaimed port": outb(0x80, 0x00),
    "timers of 100 ns": timers(1),
    "timer's count": wrmsr(Msr.STIMER0_COUNT, 1),
}
TIMERS = ("+stimer", "+stimer-direct")
RESETS = ("reset MSR", "triple fault", "keyboard controller's reset", "reset port")


@pytest.fixture(autouse=True)
def _needs_kvm(kvm: Kvm) -> None:
    """Skips where there is none."""


@pytest.mark.parametrize("name", FLOODS)
def test_the_monitor_and_signals_work_under_a_flood(name: str) -> None:
    options = {"enlightenments": TIMERS} if "timer" in name else {}
    with Flooded(FLOODS[name], on_panic="keep", **options) as machine:
        _, status = machine.ask()
        before, resets, began, slowest = machine.resident_mib, status["resets"], time.monotonic(), 0.0
        while (seconds := time.monotonic() - began) < FLOOD_SECONDS:
            answer, status = machine.ask()
            slowest = max(slowest, answer)
            time.sleep(0.02)
        growth = machine.resident_mib - before
        ending, code = machine.end(signal.SIGTERM)
    turn = status["loop"]["longest-turn"]
    print(f"longest turn {turn * 1000:.0f} ms, slowest answer {slowest * 1000:.0f} ms, end {ending * 1000:.0f} ms")
    assert slowest < ANSWER_LIMIT * SLACK
    assert growth < GROWTH_LIMIT
    assert code == 128 + signal.SIGTERM
    assert ending < END_LIMIT * SLACK
    if name in RESETS:
        assert 1 <= status["resets"] - resets <= seconds / RESET_SPACING + 1
        assert sum(status["exits"]["vcpu0"].values()) <= 2, "the vCPU stops at once"


@pytest.mark.parametrize("name", ["reset MSR", "agent, lines"])
def test_the_time_limit_ends_a_flood(name: str) -> None:
    with Flooded(FLOODS[name], timeout=0.5) as machine:
        began = time.monotonic()
        assert machine.wait() == 124
        assert time.monotonic() - began < 0.5 + END_LIMIT * SLACK


def test_debug_lines_of_a_flood_are_few() -> None:
    with Flooded(FLOODS["unclaimed port"], debug={"ports", "exits"}) as machine:
        machine.ask()
        began, slowest = time.monotonic(), 0.0
        while (seconds := time.monotonic() - began) < FLOOD_SECONDS:
            answer, status = machine.ask()
            slowest = max(slowest, answer)
            time.sleep(0.02)
        ending, _ = machine.end(signal.SIGTERM)
        lines = machine.stderr().splitlines()
    (flooded,) = status["unhandled"]["accesses"]
    print(f"{flooded['count']} writes, {len(lines)} lines, slowest answer {slowest * 1000:.0f} ms")
    assert flooded["count"] > 100 * RATE
    assert len(lines) < 2 * RATE * (seconds + ending + START_LIMIT) + 6
    assert lines[-1].split()[:4] == ["pyvmm:", "port", "write", "0x80"]
    assert slowest < ANSWER_LIMIT * SLACK
