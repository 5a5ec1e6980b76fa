"""Demo, `python -m pyvmm.kvm`: a guest of thirteen bytes copies a text from port 0x10 to 0x3F8 and halts."""

from __future__ import annotations

import ctypes
import mmap
import sys

from pyvmm.errors import HostError
from pyvmm.kvm import Hlt, IoIn, IoOut, Kvm

RAM = 0x10000
ENTRY = 0x1000

# 16-bit code, the mode in which a CPU starts: copy port 0x10 to port 0x3F8 until a zero comes, then halt.
CODE = bytes.fromhex(
    "BA F8 03"  # mov dx, 0x3f8
    "E4 10"  # again: in al, 0x10
    "84 C0"  # test al, al
    "74 03"  # jz done
    "EE"  # out dx, al
    "EB F7"  # jmp again
    "F4"  # done: hlt
)


def main() -> int:
    """Run the guest, printing every exit."""
    ram = mmap.mmap(-1, RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[ENTRY : ENTRY + len(CODE)] = CODE
    to_say = iter(b"Hello from a guest\n\0")
    said = bytearray()
    try:
        with Kvm() as kvm, kvm.create_vm() as vm:
            vm.set_memory(0, 0, RAM, ctypes.addressof(ctypes.c_char.from_buffer(ram)))
            vcpu = vm.create_vcpu(0)
            sregs = vcpu.sregs
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.sregs = sregs
            regs = vcpu.regs
            regs.rip, regs.rflags = ENTRY, 2
            vcpu.regs = regs
            while True:
                exit = vcpu.run()
                print(exit)
                match exit:
                    case IoIn(port=0x10):
                        exit.reply(bytes([next(to_say)]))
                    case IoOut(port=0x3F8, data=data):
                        said += data
                    case Hlt():
                        break
                    case other:
                        raise HostError(f"the guest ended with {other}")
    except HostError as error:
        print(f"pyvmm.kvm: {error}", file=sys.stderr)
        return 1
    print(f"the guest said: {said.decode().rstrip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
