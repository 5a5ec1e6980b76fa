"""A debugger for tests: sends packets and reads replies, in no-ack mode."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from pyvmm.gdb import registers
from pyvmm.gdb.packets import PacketReader, frame

LIMIT = 30.0  # seconds until a test gives up


class GdbClient:
    """A debugger at `connection`: `gdb("g")` is the reply."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LIMIT)
        self.socket = connection
        self._reader = PacketReader()
        self._replies: list[bytes] = []
        assert self("QStartNoAckMode") == "OK"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def __call__(self, packet: str) -> str:
        self.send(packet)
        return self.reply()

    def send(self, packet: str) -> None:
        self.socket.sendall(frame(packet.encode()))

    def reply(self) -> str:
        """The next packet, such as a stop."""
        while not self._replies:
            data = self.socket.recv(1 << 16)
            assert data, "the stub has hung up"
            self._replies += [each for each in self._reader.feed(data) if isinstance(each, bytes)]
        return self._replies.pop(0).decode()

    def interrupt(self) -> str:
        self.socket.sendall(b"\x03")
        return self.reply()

    def register(self, name: str) -> int:
        return int.from_bytes(bytes.fromhex(self(f"p{registers.NUMBER[name]:x}")), "little")

    def set_register(self, name: str, value: int) -> None:
        number = registers.NUMBER[name]
        assert self(f"P{number:x}={value.to_bytes(registers.TABLE[number].size, 'little').hex()}") == "OK"

    def read(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self(f"m{address:x},{length:x}"))
