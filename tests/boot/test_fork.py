"""Linux guests as templates: their forks keep time, balloon and answer side by side, and leave nothing behind."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyvmm.testbed.template import Child, Template
from pyvmm.testbed.vm import VM

MIB = 1 << 20
FORKS = 10
STANDSTILL = 3.0  # seconds of the host in which no guest runs
CHILD_LIMIT = 60.0
BAD = "unstable|lockup|stall|hung task|BUG|WARNING|Oops|clocksource.*skew"
HEARTBEATS = 2


@dataclass
class Frozen:
    """A template, with what its guest said before it was frozen."""

    vm: VM
    template: Template
    uptime: float
    complaints: list[str]
    digest: str
    descriptors: list[str]
    forked: list[int] = field(default_factory=list)  # process ids

    def fork(self, work: Callable[[VM], Any]) -> tuple[Child, int]:
        """Fork a child that calls `work` and writes its result to the pipe that is returned."""
        ours, theirs = os.pipe()

        def run(vm: VM) -> None:
            os.write(theirs, json.dumps(work(vm)).encode())

        child = self.template.fork(run)
        self.forked.append(child.pid)
        os.close(theirs)
        return child, ours

    def ask(self, *works: Callable[[VM], Any]) -> list[Any]:
        """Return the results of forks that run side by side."""
        children = [self.fork(work) for work in works]
        results = []
        for child, pipe in children:
            with open(pipe) as file:
                text = file.read()
            assert child.wait(CHILD_LIMIT) == 0, text
            results.append(json.loads(text))
        return results


def descriptors() -> list[str]:
    names = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            names.append(os.readlink(each))
        except FileNotFoundError:  # the folder's own
            continue
    return sorted(names)


@pytest.fixture(
    scope="module",
    params=[
        ("debian-6.1", "user", 1),
        ("debian-6.12", "kernel", 2),
    ],
    ids=lambda each: "-".join(map(str, each)),
)
def frozen(request: pytest.FixtureRequest) -> Iterator[Frozen]:
    image, engine, cpus = request.param
    vm = VM(image, engine=engine, cpus=cpus, memory="512M").boot()
    complaints = vm.guest.dmesg(BAD)
    uptime = vm.guest.uptime
    with Template(vm) as template:
        yield Frozen(vm, template, uptime, complaints, template.digest(), descriptors())


def test_time_stands_still_between_forks_and_timers_fire_in_each(frozen: Frozen) -> None:
    def clock(vm: VM) -> tuple[float, float, str]:
        first = vm.guest.uptime
        interrupts = "grep -E 'LOC|HVS' /proc/interrupts"
        before = vm.guest.sh(f"{interrupts}; sleep 0.2; {interrupts}")
        return first, vm.guest.uptime, before

    begin = time.monotonic()
    found = []
    for turn in range(FORKS):
        if turn == 1:
            time.sleep(STANDSTILL)
        found += frozen.ask(clock)
    passed = time.monotonic() - begin
    for first, second, interrupts in found:
        assert 0 <= first - frozen.uptime < passed / 2, "a child sees the time that the template stood still"
        assert 0.2 <= second - first < passed / 2
        lines = interrupts.splitlines()
        assert lines[: len(lines) // 2] != lines[len(lines) // 2 :], "no timer interrupt"


def test_forks_side_by_side_balloon_and_beat(frozen: Frozen) -> None:
    def resize(target: int) -> Callable[[VM], Any]:
        def work(vm: VM) -> Any:
            smaller = vm.balloon.resize(target)
            beats = int(vm.vmbus.device("heartbeat")["packets-in"])
            vm.until(
                lambda: int(vm.vmbus.device("heartbeat")["packets-in"]) >= beats + HEARTBEATS,
                CHILD_LIMIT,
                "heartbeats",
            )
            larger = vm.balloon.resize("512M")
            return smaller.actual, larger.actual, vm.guest.sh("md5sum /bin/busybox"), vm.guest.dmesg(BAD)

        return work

    targets = [300 * MIB, 350 * MIB, 400 * MIB]
    found = frozen.ask(*map(resize, targets))
    assert [(smaller, larger, bad) for smaller, larger, _, bad in found] == [
        (each, 512 * MIB, frozen.complaints) for each in targets
    ]
    assert len({digest for _, _, digest, _ in found}) == 1


def test_the_template_is_as_it_was(frozen: Frozen) -> None:
    assert frozen.template.digest() == frozen.digest
    assert descriptors() == frozen.descriptors
    assert threading.active_count() == 1  # natively there is one of faulthandler's: tests/kvm is stricter
    assert frozen.forked, "the tests before this one"
    assert [pid for pid in frozen.forked if Path(f"/proc/{pid}").exists()] == []


def test_a_fork_is_a_whole_guest(frozen: Frozen) -> None:
    def reboot(vm: VM) -> Any:
        clocksource = vm.guest.read("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
        vm.guest.write("/tmp/of-this-child", "")
        vm.balloon.unbind()
        vm.balloon.bind()
        vm.guest.sh("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")
        vm.until(lambda: vm.machine.resets, CHILD_LIMIT, "reset")
        vm.until(lambda: vm.machine.agent.ready, CHILD_LIMIT, "agent")
        return clocksource, vm.run("test -e /tmp/of-this-child").status

    assert frozen.ask(reboot) == [["hyperv_clocksource_tsc_page", 1]]
