"""Chapter 3: a serial console, with the registers that every PC's console has."""

from collections import Counter

from ch02_memory import Tiny

from pyvmm.devices.serial.uart import Serial
from pyvmm.iomap import IoMap
from pyvmm.kvm import Hlt, IoIn, IoOut, Kvm
from pyvmm.memory import GuestMemory

COM1, TEXT = 0x3F8, 0x1100
CODE = bytes.fromhex(
    "BA FC 03 B0 02 EE"  # mov dx, 0x3fc; mov al, 2; out dx, al      modem control: ready to receive
    "BE 00 11"  # mov si, TEXT
    "AC 84 C0 74 05"  # next: lodsb; test al, al; jz echo    al = [si], then si + 1
    "E8 16 00 EB F6"  # call say; jmp next
    "BA FD 03 EC"  # echo: mov dx, 0x3fd; in al, dx          line status
    "A8 01 74 0B"  # test al, 1; jz done                     no letter there
    "BA F8 03 EC"  # mov dx, 0x3f8; in al, dx                data: the letter
    "34 20"  # xor al, 0x20                                  the other case
    "E8 03 00 EB ED"  # call say; jmp echo
    "F4"  # done: hlt
    "88 C4 BA FD 03"  # say: mov ah, al; mov dx, 0x3fd
    "EC A8 20 74 FB"  # wait: in al, dx; test al, 0x20; jz wait    until the transmitter is empty
    "88 E0 BA F8 03 EE C3"  # mov al, ah; mov dx, 0x3f8; out dx, al; ret
)


def run(text: bytes, typed: bytes) -> tuple[str, Counter[str]]:
    """Run the guest: it says `text`, then what was `typed`. Returns what it said, and its exits by port."""
    said, exits = bytearray(), Counter[str]()
    serial = Serial(irq=lambda level: None, output=said.extend)
    ports = IoMap("port")
    ports.claim(COM1, 8, serial)
    serial.receive(typed)
    memory = GuestMemory.flat(0x10000)
    memory.write(TEXT, text + b"\0")
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, memory, CODE)
        while True:
            match guest.vcpu.run():
                case IoIn(port=port, size=size) as read:
                    read.reply(ports.read(port, size).to_bytes(size, "little"))
                    exits[f"in {port:#x}"] += 1
                case IoOut(port=port, size=size, data=data):
                    ports.write(port, size, int.from_bytes(data, "little"))
                    exits[f"out {port:#x}"] += 1
                case Hlt():
                    return said.decode(), exits


if __name__ == "__main__":
    said, exits = run(b"What? ", b"hELLO")
    print(said)
    print(*(f"{count} x {name}" for name, count in sorted(exits.items())), sep=", ")
