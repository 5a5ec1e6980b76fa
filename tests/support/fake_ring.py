"""A guest's ends of a pair of rings, written apart from pyvmm.vmbus.ring so that each checks the other.

Every access goes through GuestMemory, byte range by byte range, as Linux's drivers/hv/ring_buffer.c would do it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.memory import GuestMemory

WRITE, READ, MASK, PENDING, FEATURES = 0, 4, 8, 12, 64
IN_BAND, COMPLETION = 6, 11


@dataclass
class GuestPacket:
    """A packet the guest took out of its receiving ring."""

    type: int
    flags: int
    transaction_id: int
    payload: bytes
    descriptor: bytes = b""


class GuestRing:
    """One ring: `pages` are guest physical addresses, the header first."""

    def __init__(self, memory: GuestMemory, pages: list[int]) -> None:
        self.memory, self.pages = memory, pages
        self.size = (len(pages) - 1) * 4096
        memory.write(pages[0], bytes(4096))
        self.set(FEATURES, 1)

    def get(self, offset: int) -> int:
        return int.from_bytes(self.memory.read(self.pages[0] + offset, 4), "little")

    def set(self, offset: int, value: int) -> None:
        self.memory.write(self.pages[0] + offset, value.to_bytes(4, "little"))

    def _address(self, index: int) -> int:
        index %= self.size
        return self.pages[1 + index // 4096] + index % 4096

    def poke(self, index: int, data: bytes) -> None:
        """Store bytes in the data area, wrapping."""
        at = 0
        while at < len(data):
            step = 4096 - (index + at) % 4096
            self.memory.write(self._address(index + at), data[at : at + step])
            at += step

    def peek(self, index: int, length: int) -> bytes:
        return b"".join(self.memory.read(self._address(index + at), 8) for at in range(0, length + 7, 8))[:length]

    def used(self) -> int:
        return (self.get(WRITE) - self.get(READ)) % self.size

    def put(
        self,
        payload: bytes,
        *,
        type: int = IN_BAND,
        flags: int = 0,
        transaction_id: int = 0,
        descriptor: bytes = b"",
    ) -> bool | None:
        """Write a packet, with a descriptor of whole words. True: signal the host; None: no room, nothing written."""
        padded = descriptor + payload + bytes(-len(payload) % 8)
        length = 16 + len(padded)
        head = b"".join(n.to_bytes(2, "little") for n in (type, 2 + len(descriptor) // 8, length // 8, flags))
        old = self.get(WRITE)
        trailer = bytes(4) + old.to_bytes(4, "little")
        packet = head + transaction_id.to_bytes(8, "little") + padded + trailer
        if len(packet) >= self.size - self.used():
            return None
        self.poke(old, packet)
        self.set(WRITE, (old + len(packet)) % self.size)
        return self.get(MASK) == 0 and self.get(READ) == old

    def take(self) -> tuple[GuestPacket, bool] | None:
        """Take one packet: (packet, signal the host that there is room)."""
        used, index = self.used(), self.get(READ)
        if not used:
            return None
        head = self.peek(index, 16)
        type_, offset, length, flags = (int.from_bytes(head[at : at + 2], "little") for at in (0, 2, 4, 6))
        assert offset >= 2 and length >= offset and length * 8 + 8 <= used, "the host wrote a bad packet"
        trailer = self.peek(index + length * 8, 8)
        assert trailer == bytes(4) + index.to_bytes(4, "little"), "the host wrote a bad trailer"
        descriptor = self.peek(index + 16, (offset - 2) * 8)
        payload = self.peek(index + offset * 8, (length - offset) * 8)
        free = self.size - used
        self.set(READ, (index + length * 8 + 8) % self.size)
        pending = self.get(PENDING)
        signal = bool(pending) and free <= pending < free + length * 8 + 8
        return GuestPacket(type_, flags, int.from_bytes(head[8:], "little"), payload, descriptor), signal
