"""Solutions to the exercises of chapter 4."""

import sys
from pathlib import Path
from struct import pack

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch04_long_mode import MEMORY, boot, program

from pyvmm import address_map
from pyvmm.images.assembler import At
from pyvmm.images.kernel_assembler import KernelAssembler
from pyvmm.kvm import Hlt, IoOut, Kvm, Shutdown
from pyvmm.memory import GuestMemory


def exercise_1() -> None:
    """A virtual address that is not mapped."""
    a = KernelAssembler()
    a.move("rdi", (4 << 30) + (2 << 20))
    a.load("rax", "rdi", 0)
    memory = GuestMemory.flat(MEMORY)
    with Kvm() as kvm, kvm.create_vm() as vm:
        assert boot(vm, memory, a.build()).run() == Shutdown()


def exercise_2() -> None:
    """A text behind the code."""
    a = KernelAssembler()
    a.move("rsi", At("text"))
    a.label("next")
    a.load("rax", "rsi", 0, 1)
    a.compare("rax", 0)
    a.jump("done", "e")
    a.out(0x3F8)
    a.add("rsi", 1)
    a.jump("next")
    a.label("done")
    a.halt()
    a.data("text", b"64 bits\0")
    memory, said = GuestMemory.flat(MEMORY), b""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = boot(vm, memory, a.build())
        while isinstance(exit := vcpu.run(), IoOut):
            said += exit.data
        assert exit == Hlt()
    assert said == b"64 bits"


def exercise_3() -> None:
    """One entry of the page tables."""
    memory = GuestMemory.flat(MEMORY)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = boot(vm, memory, program())
        entry = address_map.PAGE_TABLES.start + 2 * 4096 + 8 * 4  # 8 MiB is the fourth 2 MiB from 0
        memory.write(entry, pack("<Q", 4 << 20 | 0x83))  # present, writable, large
        while isinstance(vcpu.run(), IoOut):
            pass
        assert vcpu.translate(8 << 20).gpa == 4 << 20
    assert memory.read(8 << 20, 8) == bytes(8)
    assert int.from_bytes(memory.read(4 << 20, 8), "little") == 2880067194370816120


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
