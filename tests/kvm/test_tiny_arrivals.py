"""Coverage of a module from its first instruction on, in a guest of some bytes that loads one over and over."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyvmm.kvm import Kvm
from pyvmm.machine import MachineConfig, arrivals, traps
from pyvmm.machine.arrivals import Arrival
from pyvmm.machine.traps import Traps, traps_of
from pyvmm.machine.watched import Site
from pyvmm.testbed.vm import VM
from tests.support.tiny_kernel import GPA, TEXT, vmlinux

pytestmark = pytest.mark.kvm

AGAIN = GPA + 7 * len(TEXT) + 4
CALL, FUNCTION, NEVER = (AGAIN + n for n in (5, 20, 27))
RESULT, MODULE = 0x200000, 0x300000
CODE = {
    "call": bytes.fromhex("BF00003000 E80A000000 4889042500002000 EBEC B807000000 C3 90 0F0B90"),
    # the jump is the last thing in a function: push the way back, jmp f
    "jump": bytes.fromhex("BF00003000 E90A000000 4889042500002000 EBEC B807000000 EBEF 0F0B90"),
}
"""again: mov edi, module; call f; store: mov [0x200000], rax; jmp again; f: mov eax, 7; ret (jmp store)"""
LIMIT = 20.0


def struct_module(name: bytes, code: int) -> bytes:
    return struct.pack("<Q16sQQ", 0, name, 0xDEAD000, code)


def arrival(name: str = "tiny", build: str = "00", expected: bytes = b"\xb8\x07") -> Arrival:
    sites = (Site(FUNCTION - GPA, expected), Site(NEVER - GPA, None), None)
    return Arrival(name, build, 8, 40, sites, ())


@pytest.fixture(params=["call", "jump"])
def vm(request: pytest.FixtureRequest, kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VM]:
    for module in (arrivals, traps):
        monkeypatch.setattr(module, "KERNEL_MAP", 0)  # the guest's code runs where it lies in memory
    (tmp_path / "vmlinux").write_bytes(vmlinux(b"\x90" * 4 + CODE[request.param]))
    config = MachineConfig(kernel=tmp_path / "vmlinux", memory=64 << 20, engine="user", cpus=1)
    with closing(VM(config=config)) as guest:
        guest.start()
        guest.until(lambda: result(guest) == 7, LIMIT, "the guest's result")
        guest.machine.pause()
        yield guest


def result(vm: VM) -> int:
    (found,) = struct.unpack("<Q", vm.machine.memory.read(RESULT, 8))
    return int(found)


def load(vm: VM, name: bytes = b"tiny") -> Traps:
    """The guest has a module there from now on, and the machine waits for it."""
    vm.machine.memory.write(MODULE, struct_module(name, GPA))
    found = traps_of(vm.machine)
    found.powered_on()
    vm.machine.memory.write(RESULT, bytes(8))
    vm.machine.resume()
    return found


def test_a_modules_first_run_is_seen_and_the_call_is_made(vm: VM) -> None:
    traps_of(vm.machine).expect([arrival()], [CALL])
    found = load(vm)
    vm.until(lambda: "tiny" in found.modules and found.modules["tiny"].seen, LIMIT, "the module's first block")
    vm.until(lambda: result(vm) == 7, LIMIT, "the function's result")
    watched = found.modules["tiny"]
    assert (watched.seen, watched.placed, watched.state) == ([0], {0, 1}, "on")
    assert found.active == "coverage"
    found.clear()
    assert (found.left, found.active) == (0, "")
    vm.machine.memory.write(RESULT, bytes(8))
    vm.until(lambda: result(vm) == 7, LIMIT, "the guest runs on")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [(b"other", arrival()), (b"tiny", arrival(expected=b"\x90\x90")), (b"tiny2", arrival())],
    ids=["another module", "another build", "a longer name"],
)
def test_another_module_is_left_alone(vm: VM, name: bytes, wanted: Arrival) -> None:
    traps_of(vm.machine).expect([wanted], [CALL])
    found = load(vm, name)
    vm.until(lambda: result(vm) == 7, LIMIT, "the function's result")
    assert found.modules == {}


def test_what_a_module_has_run_is_kept_when_it_is_loaded_again(vm: VM) -> None:
    found = traps_of(vm.machine)
    found.expect([arrival()], [CALL])
    load(vm)
    vm.until(lambda: "tiny" in found.modules and found.modules["tiny"].seen, LIMIT, "the module's first block")
    first = found.modules["tiny"]
    vm.until(lambda: found.modules["tiny"] is not first, LIMIT, "the next load")
    assert (found.modules["tiny"].seen, found.modules["tiny"].placed) == ([0], {0, 1})


def test_the_next_kernel_is_watched_too(vm: VM) -> None:
    found = traps_of(vm.machine)
    found.expect([arrival()], [CALL])
    load(vm)
    vm.until(lambda: "tiny" in found.modules, LIMIT, "the module")
    vm.machine.reset()
    assert (found.modules["tiny"].state, found.left) == ("gone", 1)
    vm.until(lambda: result(vm) == 7, LIMIT, "the next life")
    vm.machine.memory.write(MODULE, struct_module(b"tiny", GPA))
    vm.until(lambda: found.modules["tiny"].state == "on", LIMIT, "the module in the next life")


def test_a_guest_that_loads_modules_over_and_over_is_given_up(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traps, "ARRIVAL_LIMIT", 2)
    monkeypatch.setattr(traps, "LOAD_LIMIT", 5)
    found = traps_of(vm.machine)
    found.expect([arrival()], [CALL])
    load(vm)
    vm.until(lambda: "tiny" in found.modules, LIMIT, "the module")
    second = found.modules["tiny"]
    vm.until(lambda: CALL not in found._patches, LIMIT, "the end of it")
    assert found.modules["tiny"].hits is second.hits
    assert (found._loads, found._arrived) == (5, 2)
    vm.machine.memory.write(RESULT, bytes(8))
    vm.until(lambda: result(vm) == 7, LIMIT, "the guest runs on")
