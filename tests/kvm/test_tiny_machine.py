"""A whole machine with a tiny kernel: its life as guest time, memory and the monitor see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.devices.ic.timesync import TimeSync
from pyvmm.errors import ConfigError
from pyvmm.guest_time import STALL
from pyvmm.kvm import Kvm
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine
from tests.support.flooded import kernel

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SPIN = bytes.fromhex("ebfe")  # jmp $


class Clock:
    """The loop's clock, which can be moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(kvm: Kvm, tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Machine]]:
    """Makes a machine; the fixture closes it."""
    made: list[Machine] = []

    def make_one(**options: object) -> Machine:
        path = tmp_path / "kernel"
        path.write_bytes(kernel(SPIN))
        options = {"memory": 64 * MIB, "entry": "pvh", "engine": "user"} | options
        machine = Machine(MachineConfig(kernel=path, **options), Loop(clock))  # type: ignore[arg-type]
        made.append(machine)
        return machine

    yield make_one
    for machine in made:
        machine.close()
        machine.loop.close()


@pytest.mark.parametrize("cpus", [1, 2])
def test_guest_time_stands_still_while_the_guest_cannot_run(make, clock: Clock, cpus: int) -> None:
    machine = make(cpus=cpus)
    synced: list[float] = []
    machine.start_services()
    timesync = machine.services.devices.find(TimeSync)
    assert timesync is not None
    timesync.sync = lambda: synced.append(clock.now)  # type: ignore[method-assign]
    time = machine.guest_time
    clock.now += 100
    assert time.clock() == 1000.0, "no vCPU has run yet"
    machine.start()
    clock.now += 1
    assert time.clock() == 1001.0
    machine.pause()
    machine.reset()
    clock.now += 42
    assert (machine.monitor.status(), time.clock(), synced) == ("prelaunch", 1001.0, [])
    machine.resume()
    assert synced == [clock.now], "its clock is set"
    clock.now += 1
    assert time.clock() == 1002.0
    clock.now += STALL + 600  # SIGSTOP and SIGCONT
    assert time.clock() == 1002.0
    machine.loop.step(0)
    assert len(synced) == 2


def test_guest_time_stands_still_while_the_output_is_not_read(make, clock: Clock) -> None:
    machine = make()
    machine.start()
    level = 2
    changed = machine.throttles.watch(0, lambda: level)
    changed()
    machine.loop.step(0)
    clock.now += 42
    assert (machine.monitor.status(), machine.guest_time.clock()) == ("running", 1000.0)
    machine.pause()
    level = 0
    changed()
    machine.loop.step(0)
    clock.now += 42
    assert machine.guest_time.clock() == 1000.0, "paused, too"
    machine.resume()
    clock.now += 1
    assert machine.guest_time.clock() == 1001.0


def test_memory_is_given_and_merged_while_the_guest_runs(make) -> None:
    machine = make(memory=64 * MIB, max_memory=80 * MIB, slots=2, cpus=2)
    machine.start()
    window = machine.window
    for page in range(5):
        window.provide(window.start + page, 1)
    assert (window.mapped_pages, machine.memory.size) == (5, 64 * MIB + 5 * 4096)
    assert window.mapped <= 2
    window.keep_below(window.start + 3)
    assert machine.memory.size == 64 * MIB + 3 * 4096
    machine.pause()
    window.provide(window.start + 3, window.pages - 3)
    assert machine.memory.size == 80 * MIB, "and never more"
    machine.reset()
    assert machine.memory.size == 64 * MIB


def test_more_slots_than_this_kvm_has_are_refused(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kvm, "check", lambda kvm, cap: 32)
    with pytest.raises(ConfigError, match="lower --slots"):
        make(max_memory=80 * MIB, slots=100)
