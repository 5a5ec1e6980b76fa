"""A tiny guest is frozen, and forked: memory, registers, devices and clocks go on in each child."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.client import registry
from pyvmm.client.qmp import Client
from pyvmm.devices.serial.window import CONSOLE
from pyvmm.errors import ConfigError
from pyvmm.host.inside import inside
from pyvmm.kvm import Kvm
from pyvmm.machine.config import MachineConfig
from pyvmm.memory import PAGE_SIZE
from pyvmm.output import Output
from pyvmm.testbed.template import CHILD_FAILED, Template
from pyvmm.testbed.vm import VM
from pyvmm.unix_socket import is_listening
from tests.support.children import child_processes
from tests.support.flooded import kernel

pytestmark = pytest.mark.kvm

MIB = 1 << 20
COUNTER = 0x200000
FORKS, AT_ONCE = 40, 4
STANDSTILL = 1.0  # seconds
COUNT = bytes.fromhex("FF0500002000EBF8")  # again: inc dword [0x200000]; jmp again


@pytest.fixture(autouse=True)
def no_threads_of_other_tests() -> None:
    """End the threads of outputs that earlier tests left behind: a process with such threads is not frozen."""
    for thread in threading.enumerate():
        owner = getattr(getattr(thread, "_target", None), "__self__", None)
        if isinstance(owner, Output):
            owner.give_up()
            thread.join(5)


only_outside = pytest.mark.skipif(inside(), reason="in an emulated host names are the outer side's")


def counter(vm: VM) -> int:
    return int.from_bytes(vm.machine.memory.read(COUNTER, 4), "little")


@pytest.fixture
def start(kvm: Kvm, tmp_path: Path) -> Iterator[Callable[..., VM]]:
    """Starts a guest with this code; the fixture closes it."""
    made: list[VM] = []

    def start_one(code: bytes, **options: object) -> VM:
        path = tmp_path / "kernel"
        path.write_bytes(kernel(code))
        options = {"memory": 64 * MIB, "entry": "pvh", "engine": "user"} | options
        vm = VM(config=MachineConfig(kernel=path, **options))  # type: ignore[arg-type]
        made.append(vm.start())
        return vm

    yield start_one
    for vm in made:
        vm.close()


@pytest.mark.parametrize("cpus", [1, 2])
def test_each_child_counts_on_from_the_frozen_count(start, cpus: int) -> None:
    vm = start(COUNT, cpus=cpus)
    vm.until(lambda: counter(vm) > 1000, 10, "a count")
    with Template(vm) as template:
        frozen, digest = counter(vm), template.digest()
        with pytest.raises(ConfigError, match="frozen as a template"):
            vm.run_for(1)

        def run(vm: VM) -> int:
            first = counter(vm)
            vm.until(lambda: counter(vm) > first + 1000, 10, "more counts")
            return int(first < frozen)

        assert [template.fork(run).wait(30) for _ in range(3)] == [0, 0, 0]
        assert (counter(vm), template.digest()) == (frozen, digest)


def test_a_child_whose_run_raises_says_so(start, tmp_path: Path) -> None:
    vm = start(COUNT)

    def fail(vm: VM) -> None:
        sys.stderr = open(tmp_path / "stderr", "w")
        raise ValueError("the reason")

    with Template(vm) as template:
        assert template.fork(fail).wait(30) == CHILD_FAILED
        assert template.fork(lambda vm: sys.exit(3)).wait(30) == 3
    assert "ValueError: the reason" in (tmp_path / "stderr").read_text()


def test_the_template_has_one_thread_and_no_kvm(start) -> None:
    vm = start(COUNT, cpus=2)
    with Template(vm) as template, warnings.catch_warnings():
        warnings.simplefilter("error")  # Python 3.12 warns of a fork with threads
        assert len(os.listdir("/proc/self/task")) == 1
        assert not [name for name in open_files() if "kvm-" in name]
        assert open_files().count("/dev/kvm") == 1, "another one than the fixture's"
        assert template.fork(lambda vm: 0).wait(30) == 0


def open_files() -> list[str]:
    names = []
    for each in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{each}"))
    return sorted(names)


def test_the_guest_goes_on_in_the_process_that_froze_it(start) -> None:
    vm = start(COUNT)
    template = Template(vm)
    before = counter(vm)
    assert template.resume_here() is vm
    vm.until(lambda: counter(vm) > before + 1000, 10, "more counts")
    with pytest.raises(ConfigError, match="runs in this process already"):
        template.resume_here()


def test_a_machine_that_cannot_be_frozen_runs_on(start) -> None:
    vm = start(COUNT)
    end = threading.Event()
    other = threading.Thread(target=end.wait, name="somebody else's")
    other.start()
    try:
        with pytest.raises(ConfigError, match="would be missing in a fork: somebody else's"):
            Template(vm)
    finally:
        end.set()
        other.join()
    vm.machine.pause()
    with pytest.raises(ConfigError, match="the machine is paused: only a running one can be frozen"):
        Template(vm)
    vm.machine.resume()
    before = counter(vm)
    vm.until(lambda: counter(vm) > before + 1000, 10, "more counts")


@only_outside
def test_a_kept_fork_is_reached_by_its_name_until_it_is_stopped(start, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    vm = start(COUNT)
    with Template(vm) as template:
        child = template.fork(lambda vm: vm.keep("failed"))
        limit = time.monotonic() + 20
        while not any(is_listening(entry.socket) for entry in registry.running()):
            assert child.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        (entry,) = registry.running()
        assert (entry.name, entry.pid) == ("failed", child.pid)
        with Client(entry.socket) as client:
            assert client.execute("query-status")["status"] == "running"
            assert client.execute("query-name") == {"name": "failed"}
            client.execute("quit")
        assert child.wait(20) == 0
        assert registry.running() == []
        assert not entry.socket.exists()


@only_outside
def test_a_name_in_use_is_refused(start, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    vm = start(COUNT)
    with registry.claim("taken"), pytest.raises(ConfigError, match="'taken' runs already"):
        vm.publish("taken")
    with pytest.raises(ConfigError, match="cannot name a VM"):
        vm.publish("a b")


def test_many_forks_leave_no_process_and_no_descriptor(start) -> None:
    vm = start(COUNT)
    vm.until(lambda: counter(vm), 10, "a count")
    with Template(vm) as template:
        files, digest, before = open_files(), template.digest(), set(child_processes())
        for _ in range(FORKS // AT_ONCE):
            children = [template.fork(lambda vm: int(counter(vm) == 0)) for _ in range(AT_ONCE)]
            assert {child.wait(60) for child in children} == {0}
        assert (open_files(), template.digest()) == (files, digest)
        assert set(child_processes()) <= before, "children of earlier tests may end meanwhile"


def test_a_child_is_killed_with_its_parent_or_on_request(start) -> None:
    vm = start(COUNT)
    with Template(vm) as template:
        child = template.fork(lambda vm: vm.run_for(60))
        with pytest.raises(TimeoutError, match="did not end within"):
            child.wait(0.05)
        child.kill()
        child.kill()
        assert child.poll() == -signal.SIGKILL
        assert template.fork(lambda vm: os.kill(os.getppid(), 0)).wait(20) == 0


def test_a_child_can_be_frozen_and_forked_again(start) -> None:
    def again(vm: VM) -> int:
        before = counter(vm)
        vm.until(lambda: counter(vm) > before + 1000, 10, "more counts")
        with Template(vm) as second:
            frozen = counter(vm)
            return second.fork(lambda vm: int(counter(vm) < frozen)).wait(30)

    with Template(start(COUNT)) as template:
        assert template.fork(again).wait(60) == 0


def test_hot_added_memory_and_other_slots_are_the_same_in_a_child(start) -> None:
    vm = start(COUNT, max_memory=128 * MIB)
    window, slot = vm.machine.window, vm.machine.slot
    assert window is not None
    pages = 4 * MIB // PAGE_SIZE
    window.provide(window.start, pages)
    window.provide(window.start + pages, pages)
    vm.machine.memory.write(window.gpa + 4 * MIB, b"added")
    slot.ignore_zero_writes(CONSOLE.page, True)

    def run(vm: VM) -> int:
        kept = vm.machine.memory.read(window.gpa + 4 * MIB, 5) == b"added"
        slot.ignore_zero_writes(CONSOLE.page, False)  # KVM refuses what it does not have
        with slot.stopped_vcpus():
            window.withdraw()
        window.provide(window.start, pages)
        return int(not kept or vm.machine.memory.read(window.gpa, 5) != bytes(5))

    with Template(vm) as template:
        assert [template.fork(run).wait(30) for _ in range(2)] == [0, 0]


def test_memory_that_is_discarded_in_a_child_is_zero_there_and_stays_in_the_template(start) -> None:
    vm = start(COUNT)
    place = 32 * MIB
    vm.machine.memory.write(place, b"frozen")

    def run(vm: VM) -> int:
        vm.machine.memory.discard(place, PAGE_SIZE)
        return int(any(vm.machine.memory.read(place, PAGE_SIZE)))

    with Template(vm) as template:
        assert template.fork(run).wait(30) == 0
        assert vm.machine.memory.read(place, 6) == b"frozen"


def test_clocks_of_loop_guest_and_devices_stand_still_while_the_guest_does(start) -> None:
    vm = start(COUNT)
    vm.until(lambda: counter(vm), 10, "a count")

    def clocks(vm: VM) -> list[float]:
        machine = vm.machine
        timer = machine.board.pm.read(8, 4) / 3_579_545
        return [vm.loop.clock(), machine.guest_time.clock(), machine.engine.reference_time() / 1e7, timer]

    rang: list[float] = []
    vm.loop.after(STANDSTILL * 2, lambda: rang.append(1))
    before = clocks(vm)
    with Template(vm) as template:
        time.sleep(STANDSTILL * 3)

        def run(vm: VM) -> int:
            moved = [new - old for new, old in zip(clocks(vm), before, strict=True)]
            early = bool(rang)
            vm.until(lambda: rang, 10, "timer")
            return int(early or not all(0 < each < STANDSTILL * 2 for each in moved))

        assert template.fork(run).wait(30) == 0
