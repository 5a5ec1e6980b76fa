"""Debug registers and patches in memory."""

from __future__ import annotations

import pytest

from pyvmm.gdb.breakpoints import INT3, OUT, PATCH_LIMIT, DebugRegisters, Patches, is_short, leads_to
from pyvmm.gdb.target import Kind, RefusedError
from pyvmm.memory import GuestMemory


def test_breakpoints_and_watchpoints_share_the_four_registers() -> None:
    registers = DebugRegisters()
    registers.insert(Kind.HARDWARE, 0x1000, 1)
    registers.insert(Kind.HARDWARE, 0x1000, 1)
    registers.insert(Kind.WRITE, 0x2004, 4)
    registers.insert(Kind.ACCESS, 0x3000, 8)
    assert registers.values() == (0x1000, 0x2004, 0x3000, 0, 0, 0, 0, 0xBD0_042A)
    hit = registers.hit(0b100)
    assert hit is not None
    assert (hit.reason, hit.address, hit.executes) == ("awatch", 0x3000, False)
    assert registers.hit(0b1000) is None
    with pytest.raises(RefusedError, match="needs 2 debug registers, and 1 of 4"):
        registers.insert(Kind.WRITE, 0x4001, 2)
    assert registers.remove(Kind.WRITE, 0x2004, 4)
    assert not registers.remove(Kind.WRITE, 0x2004, 4)
    registers.insert(Kind.WRITE, 0x4001, 2)
    assert {each.request for each in registers.slots if each} >= {(Kind.WRITE, 0x4001, 2)}


@pytest.mark.parametrize("length", [0, 33, 1 << 63])
def test_a_watchpoint_past_the_registers_is_refused(length: int) -> None:
    with pytest.raises(RefusedError):
        DebugRegisters().insert(Kind.WRITE, 0x1000, length)


@pytest.fixture
def memory() -> GuestMemory:
    found = GuestMemory.flat(1 << 16)
    found.write(0x1000, bytes.fromhex("8b00 8b01 c3 8b02"))
    return found


@pytest.mark.parametrize("code", [INT3, OUT])
def test_a_patch_is_put_in_hidden_written_under_and_taken_out(memory: GuestMemory, code: bytes) -> None:
    patches = Patches(memory, code)
    patches.insert(0xFFFF1000, [0x1000 + n for n in range(len(code))])
    assert 0xFFFF1000 in patches
    assert memory.read(0x1000, len(code)) == code
    assert patches.hide(0xFFF, memory.read(0xFFF, 4)) == bytes.fromhex("00 8b00 8b")
    patches.write(0x1000, bytes.fromhex("3303"))
    assert patches.hide(0x1000, memory.read(0x1000, 2)) == bytes.fromhex("3303")
    assert memory.read(0x1000, len(code)) == code
    assert patches.remove(0xFFFF1000)
    assert not patches.remove(0xFFFF1000)
    assert memory.read(0x1000, 3) == bytes.fromhex("33038b")
    assert not patches


def test_two_patches_do_not_overlap(memory: GuestMemory) -> None:
    patches = Patches(memory, OUT)
    patches.insert(2, [0x1002, 0x1003])
    with pytest.raises(RefusedError, match="in the way"):
        patches.insert(3, [0x1001, 0x1002])
    Patches(memory, INT3).insert(1, [0x1004])


PUSH, NOPS = b"\x53", b"\x0f\x1f\x00" * 40


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (NOPS + PUSH + NOPS, False),
        (NOPS + b"\xc3" + NOPS, True),  # ret
        (b"\xeb\x78" + NOPS + PUSH + NOPS, False),
        (b"\xeb\x79" + NOPS + PUSH + NOPS, True),
        (NOPS + PUSH + NOPS + b"\x75" + bytes([256 - 122]), True),
        (b"\xe9\x79\0\0\0" + NOPS + PUSH + NOPS, True),
        (NOPS + PUSH + NOPS + b"\x0f\x84" + (-126 & 0xFFFFFFFF).to_bytes(4, "little"), True),
        (NOPS + PUSH + NOPS + b"\x0f\x84" + (-125 & 0xFFFFFFFF).to_bytes(4, "little"), False),
    ],
)
def test_a_branch_behind_an_instruction_of_one_byte_is_found(code: bytes, found: bool) -> None:
    at = max(code.find(PUSH), code.find(b"\xc3"))
    assert is_short(code[at : at + 2])
    assert leads_to(code, at + 1) is found


def test_padding_behind_an_instruction_does_not_matter() -> None:
    assert not is_short(b"\xc3\xcc")
    assert not is_short(b"\x89\xd8")
    assert not is_short(b"")


def test_registers_that_do_not_work_on_this_kvm_are_refused() -> None:
    registers = DebugRegisters(breakpoints=False)
    registers.insert(Kind.WRITE, 0x1000, 8)
    with pytest.raises(RefusedError, match="breakpoints in debug registers do not work"):
        registers.insert(Kind.SOFTWARE, 0x1000, 1)


def test_a_patch_whose_memory_was_written_anew_is_not_undone(memory: GuestMemory) -> None:
    patches = Patches(memory, OUT)
    patches.insert(1, [0x1000, 0x1001])
    memory.write(0x1000, b"\x11\x22")
    patches.clear()
    assert memory.read(0x1000, 2) == b"\x11\x22"


def test_patches_are_bounded(memory: GuestMemory) -> None:
    patches = Patches(memory, INT3)
    for n in range(PATCH_LIMIT):
        patches.insert(n, [0x2000 + n])
    with pytest.raises(RefusedError, match="more than"):
        patches.insert(PATCH_LIMIT, [0x9000])
