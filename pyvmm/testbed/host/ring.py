"""The rings of an open channel as the raw host writes them: packets of any form, indices, masks, sizes.

    to_guest    the host writes packets, the guest reads
    to_host     the guest writes, the host reads
    header      write index, read index, interrupt mask, pending size, feature bits: u32 each (pyvmm.vmbus.ring)

`packet` builds bytes with any header; `send` stores bytes at the host's write index, and the channel's later packets
follow them. Indices that are set here directly are in the shared page alone: pyvmm keeps its own.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.packet import PacketType
from pyvmm.vmbus.ring import (
    FEATURE_BITS,
    INTERRUPT_MASK,
    PENDING_SEND_SIZE,
    READ_INDEX,
    WRITE_INDEX,
    Ring,
)

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host


class RawRing:
    """One ring in shared memory: its header words, any u32, and its data area of `size` bytes."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.size = ring.size

    write_index = property(lambda self: self._get(WRITE_INDEX), lambda self, value: self._set(WRITE_INDEX, value))
    read_index = property(lambda self: self._get(READ_INDEX), lambda self, value: self._set(READ_INDEX, value))
    mask = property(lambda self: self._get(INTERRUPT_MASK), lambda self, value: self._set(INTERRUPT_MASK, value))
    pending = property(
        lambda self: self._get(PENDING_SEND_SIZE), lambda self, value: self._set(PENDING_SEND_SIZE, value)
    )
    features = property(lambda self: self._get(FEATURE_BITS), lambda self, value: self._set(FEATURE_BITS, value))

    def read(self, start: int, length: int) -> bytes:
        """Return bytes of the data area, wrapping at its end."""
        self._check(start, length)
        return self._ring.copy_out(start, length)

    def write(self, start: int, data: bytes) -> None:
        """Store bytes in the data area, wrapping at its end."""
        self._check(start, len(data))
        self._ring.copy_in(start, data)

    def _check(self, start: int, length: int) -> None:
        if not 0 <= start < self.size or not 0 <= length <= self.size:
            raise ValueError(f"{length} bytes at {start:#x} of a ring of {self.size:#x} bytes")

    def _get(self, word: int) -> int:
        return self._ring.words[word]

    def _set(self, word: int, value: int) -> None:
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{value:#x} is no u32")
        self._ring.words[word] = value


class RawRings:
    """Both rings of a channel."""

    def __init__(self, host: Host, channel: Channel) -> None:
        self._host = host
        self.channel = channel
        self.to_guest = RawRing(channel.writer.ring)
        self.to_host = RawRing(channel.reader.ring)

    def packet(
        self,
        payload: bytes,
        *,
        type: int = PacketType.IN_BAND,
        flags: int = 0,
        transaction_id: int = 0,
        descriptor: bytes = b"",
        offset8: int | None = None,
        length8: int | None = None,
        trailer: bool = True,
    ) -> bytes:
        """Return the bytes of the next packet to the guest. `offset8` and `length8` are the header's, in units of 8
        bytes, right by default; without `trailer` the last 8 bytes, which the guest's index counts, are missing."""
        body = descriptor + payload
        body += bytes(-len(body) % 8)
        offset = (16 + len(descriptor)) // 8 if offset8 is None else offset8
        length = (16 + len(body)) // 8 if length8 is None else length8
        head = pack("<HHHHQ", type & 0xFFFF, offset & 0xFFFF, length & 0xFFFF, flags & 0xFFFF, transaction_id)
        return head + body + (pack("<II", 0, self.to_guest.write_index) if trailer else b"")

    def send(self, data: bytes, *, advance: int | None = None, signal: bool = True) -> None:
        """Store bytes in the ring to the guest, whatever is there, move the write index by `advance` (their length),
        and signal the guest. Raises ValueError for more than the ring."""
        if len(data) >= self.to_guest.size:
            raise ValueError(f"{len(data)} bytes in a ring of {self.to_guest.size}")
        self.channel.writer.store(data, advance)
        if signal:
            self.signal()

    def signal(self) -> bool:
        """Signal the guest, whether or not something is in the ring."""
        return self._host.vmbus.signal(self.channel.relid)
