"""Chapter 1: a guest of a dozen instructions spells a text and halts."""

import ctypes
import mmap

from pyvmm.kvm import Hlt, IoIn, IoOut, Kvm

RAM = 0x10000  # bytes of memory
ENTRY = 0x1000  # where the guest begins

# The mode in which an x86 CPU starts has 16-bit registers. This is all that the guest is:
CODE = bytes.fromhex(
    "BA F8 03"  # mov dx, 0x3f8     the port for letters
    "31 DB"  # xor bx, bx           the number of letters: none yet
    "E4 10"  # next: in al, 0x10    ask for a letter
    "84 C0"  # test al, al
    "74 06"  # jz done              zero: there are no more
    "24 DF"  # and al, 0xdf         to upper case
    "EE"  # out dx, al              say it
    "43"  # inc bx
    "EB F4"  # jmp next
    "88 D8"  # done: mov al, bl
    "E6 11"  # out 0x11, al         say how many there were
    "F4"  # hlt
)


def run(text: str) -> str:
    """Run the guest, which asks for `text` letter by letter. Returns what it said."""
    letters = iter(text.encode() + b"\0")
    said = bytearray()
    ram = mmap.mmap(-1, RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[ENTRY : ENTRY + len(CODE)] = CODE
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_memory(0, gpa=0, size=RAM, host_address=ctypes.addressof(ctypes.c_char.from_buffer(ram)))
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.sregs = sregs
        regs = vcpu.regs
        regs.rip, regs.rflags = ENTRY, 2
        vcpu.regs = regs
        while True:
            match vcpu.run():
                case IoIn(port=0x10) as read:
                    read.reply(bytes([next(letters)]))
                case IoOut(port=0x3F8, data=data):
                    said += data
                case IoOut(port=0x11, data=data):
                    said += f", {data[0]} letters".encode()
                case Hlt():
                    return said.decode()
                case other:
                    raise SystemExit(f"the guest ended with {other}")


if __name__ == "__main__":
    print(run("hello"))
