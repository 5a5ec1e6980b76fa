"""Chapter 2: a guest with two pieces of memory and a hole between them."""

from pyvmm.kvm import Hlt, Kvm, MmioRead, MmioWrite, Vcpu, Vm
from pyvmm.memory import GuestMemory, HostMemory, Region

ENTRY = 0x1000
KIB = 1024


class Tiny:
    """A guest that starts in real mode at ENTRY; each region of its memory has a slot."""

    def __init__(self, vm: Vm, memory: GuestMemory, code: bytes) -> None:
        self.vm, self.memory = vm, memory
        for slot, region in enumerate(memory):
            vm.set_memory(slot, region.gpa, region.size, region.address)
        memory.write(ENTRY, code)
        self.vcpu = self.add_vcpu(0)

    def add_vcpu(self, number: int) -> Vcpu:
        """Create a vCPU that starts at ENTRY."""
        vcpu = self.vm.create_vcpu(number)
        sregs, regs = vcpu.sregs, vcpu.regs
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip, regs.rsp, regs.rflags = ENTRY, 0x8000 - 0x1000 * number, 2
        vcpu.sregs, vcpu.regs = sregs, regs
        return vcpu


CODE = bytes.fromhex(
    "B8 00 20 8E D8"  # mov ax, 0x2000; mov ds, ax    from now on [0] is gpa 0x20000
    "C6 06 00 00 41"  # mov byte [0], 'A'
    "B8 00 10 8E D8"  # mov ax, 0x1000; mov ds, ax    [0] is gpa 0x10000
    "C6 06 10 00 42"  # mov byte [0x10], 'B'
    "A0 20 00"  # mov al, [0x20]
    "BB 00 20 8E DB"  # mov bx, 0x2000; mov ds, bx
    "A2 01 00"  # mov [1], al
    "F4"  # hlt
)

LOW = Region(0, 64 * KIB, HostMemory(64 * KIB))
HIGH = Region(0x20000, 64 * KIB, HostMemory(64 * KIB))

if __name__ == "__main__":
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, GuestMemory([LOW, HIGH]), CODE)
        while True:
            match guest.vcpu.run():
                case MmioWrite(gpa=gpa, data=data):
                    print(f"the guest wrote {data!r} to {gpa:#x}, where no memory is")
                case MmioRead(gpa=gpa) as read:
                    print(f"the guest reads {read.size} byte at {gpa:#x}, where no memory is: C")
                    read.reply(b"C")
                case Hlt():
                    break
        print(f"at 0x20000 lies {guest.memory.read(0x20000, 2)!r}")
