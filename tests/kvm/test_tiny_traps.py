"""Breakpoints that handle themselves, in a guest of some bytes: coverage, forced returns, and how they end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.gdb.breakpoints import OUT
from pyvmm.kvm import Kvm
from pyvmm.machine import MachineConfig
from pyvmm.machine.traps import SUSPENSION_LIMIT, Traps, traps_of
from pyvmm.machine.watched import Site
from pyvmm.testbed.vm import VM
from tests.support.tiny_kernel import GPA, TEXT, vmlinux

pytestmark = pytest.mark.kvm

AGAIN = GPA + 7 * len(TEXT) + 4
CALL, STORE, ADD, JUMP, FUNCTION, RETURN, NEVER = (AGAIN + n for n in (2, 7, 15, 18, 20, 25, 26))
CODE = bytes.fromhex("89D8 E80D000000 4889042500002000 83C101 EBEC B807000000 C3 0F0B90")
"""again: mov eax, ebx; call f; mov [0x200000], rax; add ecx, 1; jmp again; f: mov eax, 7; ret; ud2; nop"""
RESULT = 0x200000
LIMIT = 20.0


@contextmanager
def guest(kvm: Kvm, folder: Path, *, cpus: int = 1, memory: int = 64 << 20) -> Iterator[VM]:
    """The guest in its loop, before the test's thread runs the loop again."""
    (folder / "vmlinux").write_bytes(vmlinux(b"\x90" * 4 + CODE))
    config = MachineConfig(kernel=folder / "vmlinux", memory=memory, engine="user", cpus=cpus)
    with closing(VM(config=config).start()) as vm:
        vm.until(lambda: result(vm) == 7, LIMIT, "the guest's result")
        yield vm


@contextmanager
def paused(vm: VM) -> Iterator[None]:
    vm.machine.pause()
    yield
    vm.machine.resume()


def start(vm: VM) -> Traps:
    return traps_of(vm.machine)


def code(vm: VM) -> bytes:
    return bytes(vm.machine.memory.read(AGAIN, len(CODE)))


def result(vm: VM) -> int:
    (found,) = struct.unpack("<Q", vm.machine.memory.read(RESULT, 8))
    return int(found)


@pytest.fixture(params=[1, 2])
def vm(request: pytest.FixtureRequest, kvm: Kvm, tmp_path: Path) -> Iterator[VM]:
    with guest(kvm, tmp_path, cpus=request.param) as booted:
        yield booted


def test_a_block_is_seen_once_and_its_breakpoint_is_gone(vm: VM) -> None:
    traps = start(vm)
    with paused(vm):
        watched = traps.watch("tiny", "00", [Site(AGAIN), Site(FUNCTION, b"\xb8\x07"), Site(NEVER), None])
        assert code(vm)[:2] == OUT
    vm.until(lambda: len(watched.seen) == 2, LIMIT, "two blocks")
    assert watched.seen == [0, 1]
    assert watched.placed == {0, 1, 2}
    assert traps.left == 1
    vm.run_for(0.05)
    assert code(vm)[: NEVER - AGAIN] == CODE[: NEVER - AGAIN]
    written = vm.machine.slot.threads[0].exits["IoOut"]
    vm.run_for(0.1)
    assert vm.machine.slot.threads[0].exits["IoOut"] == written, "no exits any more"
    traps.unwatch("tiny")
    assert (code(vm), traps.left) == (CODE, 0)


def test_bytes_in_two_words_are_restored_by_the_loop(vm: VM) -> None:
    assert CALL % 8 == 7
    watched = start(vm).watch("tiny", "00", [Site(CALL)])
    vm.until(lambda: watched.seen, LIMIT, "the block")
    vm.run_for(0.05)
    assert code(vm) == CODE
    vm.machine.memory.write(RESULT, bytes(8))
    vm.until(lambda: result(vm) == 7, LIMIT, "the guest runs on")


def test_a_call_returns_what_it_shall_without_being_made(vm: VM) -> None:
    traps = start(vm)
    forced = traps.fail([CALL], -12, times=0)
    vm.until(lambda: result(vm) == (1 << 64) - 12, LIMIT, "the forced result")
    vm.until(lambda: forced.done > 2, LIMIT, "one failure after the other")
    traps.allow(forced)
    assert code(vm) == CODE
    vm.until(lambda: result(vm) == 7, LIMIT, "the function's own result")


def test_some_calls_pass_before_one_fails(vm: VM) -> None:
    traps = start(vm)
    with paused(vm):
        forced = traps.fail([CALL], 99, times=2, skip=3)
    vm.until(lambda: forced.spent, LIMIT, "two failures")
    vm.until(lambda: not traps.forced, LIMIT, "its end")
    assert (forced.passed, forced.done) == (3, 2)
    assert code(vm) == CODE
    vm.until(lambda: result(vm) == 7, LIMIT, "the function's own result")


def test_a_call_can_be_covered_and_fail(vm: VM) -> None:
    traps = start(vm)
    with paused(vm):
        watched = traps.watch("tiny", "00", [Site(CALL), Site(FUNCTION)])
        forced = traps.fail([CALL], 5, times=1)
    vm.until(lambda: forced.done == 1 and len(watched.seen) == 2, LIMIT, "the failure, then the function")
    vm.until(lambda: not traps.left, LIMIT, "no breakpoint left")
    assert code(vm) == CODE


def test_only_a_call_can_fail(vm: VM) -> None:
    with pytest.raises(ConfigError, match="no call at"):
        start(vm).fail([ADD], 0)
    assert code(vm) == CODE
    with pytest.raises(ConfigError, match="not mapped"):
        start(vm).fail([0x7000_0000_0000], 0)


def test_another_module_than_the_file_is_refused(vm: VM) -> None:
    with pytest.raises(ConfigError, match="not the one of the file: 1 of 2 places differ"):
        start(vm).watch("tiny", "00", [Site(AGAIN, b"\x89\xd8"), Site(FUNCTION, b"\x90\x90")])
    assert code(vm) == CODE


def test_an_unloaded_module_has_no_breakpoints(vm: VM) -> None:
    traps = start(vm)
    with paused(vm):
        watched = traps.watch("tiny", "00", [Site(FUNCTION), Site(NEVER)], exits=[FUNCTION])
    vm.until(lambda: watched.state == "unloaded", LIMIT, "the exit function")
    assert (watched.seen, traps.left, code(vm)) == ([0], 0, CODE)
    vm.machine.memory.write(RESULT, bytes(8))
    vm.until(lambda: result(vm) == 7, LIMIT, "the guest runs on")


def test_a_kernel_that_leaves_and_comes_back_is_covered_again_and_another_is_not(vm: VM) -> None:
    traps = start(vm)
    server = vm.machine.services.bus.server
    watched = traps.watch("tiny", "00", [Site(NEVER, b"\x0f\x0b")])
    server.on_unload()
    assert (watched.state, code(vm)) == ("suspended", CODE)
    server.on_contact()
    assert (watched.state, traps.left) == ("on", 1)
    server.on_unload()
    vm.machine.memory.write(NEVER, b"\x90\x90")
    server.on_contact()
    assert (watched.state, traps.left, code(vm)[-3:]) == ("gone", 0, b"\x90\x90\x90")


def test_a_call_fails_again_when_its_kernel_comes_back(vm: VM) -> None:
    forced = start(vm).fail([CALL], 5, times=0)
    server = vm.machine.services.bus.server
    server.on_unload()
    assert code(vm) == CODE
    server.on_contact()
    before = forced.done
    vm.until(lambda: forced.done > before, LIMIT, "a failure")
    server.on_unload()
    vm.machine.memory.write(CALL, b"\x90\x90")
    server.on_contact()
    assert code(vm)[2:4] == b"\x90\x90", "another kernel's code"


def test_a_kernel_that_leaves_over_and_over_is_given_up(vm: VM) -> None:
    server = vm.machine.services.bus.server
    watched = start(vm).watch("tiny", "00", [Site(NEVER)])
    for _ in range(SUSPENSION_LIMIT):
        server.on_unload()
        server.on_contact()
        assert watched.state == "on"
    server.on_unload()
    server.on_contact()
    assert (watched.state, code(vm)) == ("gone", CODE)


def test_a_debugger_and_coverage_exclude_each_other(vm: VM) -> None:
    traps = start(vm)
    traps.watch("tiny", "00", [Site(NEVER)])
    with pytest.raises(ConfigError, match="coverage is on: end that first"):
        vm.machine.monitor.check_debugger()
    traps.unwatch("tiny")
    vm.machine.monitor.check_debugger()
    debugger = vm.machine.debugger
    assert debugger is not None
    debugger.attach(lambda stop: None, lambda status: None)
    with pytest.raises(ConfigError, match="a debugger is connected: detach it first"):
        traps.watch("tiny", "00", [Site(NEVER)])
    with pytest.raises(ConfigError, match="a debugger is connected"):
        traps.fail([CALL], 0)
    debugger.detach()
    watched = traps.watch("tiny", "00", [Site(FUNCTION)])
    vm.until(lambda: watched.seen, LIMIT, "the block")


def test_a_reset_ends_coverage(vm: VM) -> None:
    traps = start(vm)
    watched = traps.watch("tiny", "00", [Site(AGAIN), Site(NEVER)])
    vm.until(lambda: watched.seen, LIMIT, "the block")
    vm.machine.reset()
    vm.until(lambda: code(vm) == CODE and result(vm) == 7, LIMIT, "the next life")
    assert (watched.state, watched.seen, traps.left, traps.active) == ("gone", [0], 0, "")


def test_a_paused_machine_is_covered_from_when_it_goes_on(vm: VM) -> None:
    vm.machine.pause()
    watched = start(vm).watch("tiny", "00", [Site(FUNCTION)])
    assert vm.machine.state == "paused"
    vm.run_for(0.05)
    assert watched.seen == []
    vm.machine.resume()
    vm.until(lambda: watched.seen, LIMIT, "the block")
