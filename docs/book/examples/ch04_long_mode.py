"""Chapter 4: straight into 64-bit mode, as a boot loader leaves it for Linux."""

from collections.abc import Sequence

from pyvmm import address_map
from pyvmm.firmware import entry
from pyvmm.images.kernel_assembler import KernelAssembler
from pyvmm.kvm import CpuidEntry, IoOut, Kvm, Vcpu, Vm
from pyvmm.memory import GuestMemory

ENTRY = 0x100000  # 1 MiB: real mode has no name for this address
MEMORY = 16 << 20


def boot(vm: Vm, memory: GuestMemory, code: bytes, cpuid: Sequence[CpuidEntry] = ()) -> Vcpu:
    """Put code into memory, and a vCPU at its first instruction, in 64-bit mode."""
    (ram,) = memory
    vm.set_memory(0, ram.gpa, ram.size, ram.address)
    state = entry.long_mode(ENTRY)
    memory.write(ENTRY, code)
    memory.write(address_map.GDT.start, state.gdt())
    memory.write(address_map.PAGE_TABLES.start, entry.page_tables())
    vcpu = vm.create_vcpu(0)
    if cpuid:  # before the registers: it says which bits of them there are
        vcpu.set_cpuid(cpuid)
    state.apply(vcpu)
    return vcpu


def program() -> bytes:
    """Compute the 90th Fibonacci number, store it at 8 MiB, and say it in two halves."""
    a = KernelAssembler()
    a.move("rcx", 1)  # the other registers begin at 0
    a.move("r8", 90)
    a.label("again")
    a.move("rax", "rbx")
    a.add("rax", "rcx")
    a.move("rbx", "rcx")
    a.move("rcx", "rax")
    a.subtract("r8", 1)
    a.jump("again", "ne")
    a.move("rdi", 8 << 20)
    a.store(0, "rbx", base="rdi")
    a.move("rax", "rbx")
    a.out(0x10, size=4)
    a.shift_right("rax", 32)
    a.out(0x10, size=4)
    a.halt()
    return a.build()


if __name__ == "__main__":
    said, memory = b"", GuestMemory.flat(MEMORY)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = boot(vm, memory, program())
        while isinstance(exit := vcpu.run(), IoOut):
            said += exit.data
        print(f"the guest says {int.from_bytes(said, 'little'):,}")
        print(f"at 8 MiB lies  {int.from_bytes(memory.read(8 << 20, 8), 'little'):,}")
        print(f"virtual {8 << 20:#x} is physical {vcpu.translate(8 << 20).gpa:#x}")
