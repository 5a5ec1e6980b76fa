"""Solutions to the exercises of chapter 3."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch02_memory import Tiny
from ch03_serial import CODE, COM1, TEXT, run

from pyvmm.iomap import IoMap
from pyvmm.kvm import Hlt, IoIn, IoOut, Kvm
from pyvmm.memory import GuestMemory


def exercise_1() -> None:
    """Coalesced writes cause no exits."""
    _, exits = run(b"hello", b"")
    assert exits["out 0x3f8"] == 5 and exits["in 0x3fd"] == 5 + 1
    memory = GuestMemory.flat(0x10000)
    memory.write(TEXT, b"hello\0")
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, memory, CODE)
        vm.coalesce(COM1, 1, pio=True)
        ports = []
        while not isinstance(exit := guest.vcpu.run(), Hlt):
            ports.append(exit.port)
            if isinstance(exit, IoIn):
                exit.reply(b"\x20")  # the transmitter is empty, and no letter has come
        assert ports == [0x3FC] + [0x3FD] * 6
        assert b"".join(write.data for write in vm.drain_coalesced()) == b"hello"


def exercise_2() -> None:
    """Nothing typed."""
    said, exits = run(b"Hm. ", b"")
    assert said == "Hm. " and not exits["in 0x3f8"]


class Counter:
    """A device of one port that counts how often it was read."""

    count = 0

    def read(self, offset: int, size: int) -> int:
        self.count += 1
        return self.count

    def write(self, offset: int, size: int, value: int) -> None:
        self.count = value


def exercise_3() -> None:
    """A guest reads the counter three times."""
    ports, said = IoMap("port"), b""
    ports.claim(0x10, 1, Counter())
    code = bytes.fromhex("E4 10 E6 11 E4 10 E6 11 B0 07 E6 10 E4 10 E6 11 F4")  # in, out; in, out; 7 into it; in, out
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, GuestMemory.flat(0x10000), code)
        while not isinstance(exit := guest.vcpu.run(), Hlt):
            match exit:
                case IoIn(port=port, size=size):
                    exit.reply(ports.read(port, size).to_bytes(size, "little"))
                case IoOut(port=0x11, data=data):
                    said += data
                case IoOut(port=port, size=size, data=data):
                    ports.write(port, size, data[0])
    assert said == bytes([1, 2, 8])


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
