"""A machine under a debugger that remembers what it was told: two vCPUs, 64 KiB of memory at 0x1000."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyvmm.gdb import registers
from pyvmm.gdb.target import Action, Kind, RefusedError, Signal, Stop

BASE, SIZE = 0x1000, 0x10000


class FakeTarget:
    """`Target` for tests of the session. It stops when the test calls `stopped`."""

    def __init__(self) -> None:
        self.vcpus = 2
        self.calls: list[object] = []
        self.memory = bytearray(SIZE)
        self.values = [dict.fromkeys(registers.NUMBER, 0) for _ in range(2)]
        self.stopped: Callable[[Stop], None] = lambda stop: None
        self.ended: Callable[[int], None] = lambda status: None

    def attach(self, stopped: Callable[[Stop], None], ended: Callable[[int], None]) -> None:
        self.stopped, self.ended = stopped, ended
        self.calls.append("attach")

    def detach(self) -> None:
        self.calls.append("detach")

    def interrupt(self) -> None:
        self.stopped(Stop(1, Signal.INT))

    def resume(self, actions: Mapping[int, Action]) -> None:
        self.calls.append(dict(actions))

    def registers(self, vcpu: int) -> Mapping[str, int]:
        return self.values[vcpu]

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        if "cs" in values and values["cs"] != self.values[vcpu]["cs"]:
            raise RefusedError("cs cannot be set")
        self.values[vcpu] |= values

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        return bytes(self.memory[address - BASE :][:length]) if address >= BASE else b""

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        at = address - BASE
        if not 0 <= at <= SIZE - len(data):
            raise RefusedError("not mapped")
        self.memory[at : at + len(data)] = data

    def insert(self, vcpu: int, kind: Kind, address: int, length: int) -> None:
        if kind is Kind.WRITE and length > 32:
            raise RefusedError("no room")
        self.calls.append(("insert", kind, address, length))

    def remove(self, kind: Kind, address: int, length: int) -> None:
        self.calls.append(("remove", kind, address, length))

    def describe(self, vcpu: int) -> str:
        return f"vCPU {vcpu}"

    def monitor(self, line: str) -> str:
        return f"you said {line}\n" if line != "long" else "x" * 100_000

    def kill(self) -> None:
        self.calls.append("kill")
