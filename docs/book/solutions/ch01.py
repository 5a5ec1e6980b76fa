"""Solutions to the exercises of chapter 1."""

import ctypes
import mmap
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import ch01_first_guest as chapter

from pyvmm.kvm import Exit, Hlt, IoIn, IoOut, Kvm


def exits_of(code: bytes, letters: bytes, *, halts: int = 1) -> list[Exit]:
    """Run a guest as the example does, up to its last `hlt`; return all exits."""
    ram = mmap.mmap(-1, chapter.RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[chapter.ENTRY : chapter.ENTRY + len(code)] = code
    asked, seen = iter(letters), []
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_memory(0, 0, chapter.RAM, ctypes.addressof(ctypes.c_char.from_buffer(ram)))
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.sregs, vcpu.regs
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip, regs.rflags = chapter.ENTRY, 2
        vcpu.sregs, vcpu.regs = sregs, regs
        while seen.count(Hlt()) < halts:
            exit = vcpu.run()
            if isinstance(exit, IoIn):
                exit.reply(bytes([next(asked)]))
            seen.append(exit)
    return seen


def exercise_1() -> None:
    """The letters as they come."""
    chapter.CODE = chapter.CODE.replace(bytes.fromhex("24 DF"), bytes.fromhex("90 90"))
    assert chapter.run("Hello") == "Hello, 5 letters"


def exercise_2() -> None:
    """2n + 3 exits."""
    for text in (b"", b"a", b"hello"):
        assert len(exits_of(chapter.CODE, text + b"\0")) == 2 * len(text) + 3


def exercise_3() -> None:
    """The guest goes on behind its hlt."""
    exits = exits_of(bytes.fromhex("F4 B0 21 E6 11 F4"), b"", halts=2)  # hlt; mov al, '!'; out 0x11, al; hlt
    assert exits == [Hlt(), IoOut(0x11, 1, 1, b"!"), Hlt()]


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
