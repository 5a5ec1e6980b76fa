"""A ring buffer: one direction of a channel, shared pages that one side writes and the other reads.

Source: Linux include/linux/hyperv.h, struct hv_ring_buffer and vmpacket_descriptor; drivers/hv/ring_buffer.c.

    header page                            data area, (pages - 1) x 4096 bytes
    +0   write index    the writer's       0        read            write           size
    +4   read index     the reader's       |.........|###############|...............|
    +8   interrupt mask the reader's         free       packets           free
    +12  pending size   the writer's
    +64  feature bits   bit 0: both sides know the pending size

Indices count bytes in the data area, always multiples of 8. Equal indices mean empty, so the ring is never filled to
the last byte. A packet may wrap anywhere, even inside its header:

    +0 type u16 | data offset u16 (in 8 bytes) | length u16 (in 8 bytes) | flags u16
    +8 transaction id u64
    +16 descriptor, in packets that point at other memory (`packet`); else nothing
    data offset: payload, padded to 8 bytes
    end: u64 whose high half is the index at which the packet began

The pages are the guest's and lie anywhere in its memory, and it may change any byte at any time: each index is read
once per step, each packet byte once, and only the copies are checked and used. `RingReader` and `RingWriter` are the
host's ends; `python -m pyvmm.vmbus.ring` fills a ring before your eyes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from struct import Struct

from pyvmm.errors import GuestError
from pyvmm.memory import PAGE_SIZE, GuestMemory, memory_barrier
from pyvmm.tap import Fields, Item, Tap
from pyvmm.vmbus.packet import Packet, PacketHeader, PacketType

WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURE_BITS = 0, 1, 2, 3, 16  # u32 words of the header
WORDS = {
    "write": WRITE_INDEX,
    "read": READ_INDEX,
    "mask": INTERRUPT_MASK,
    "pending": PENDING_SEND_SIZE,
    "features": FEATURE_BITS,
}
"""The header's words by their names in the tap `index`."""
FEATURE_PENDING_SEND_SIZE = 1
TRAILER_SIZE = 8
READ_AT_ONCE = 4096
"""Bytes copied out of a ring at once, for as many packets as they hold. A longer packet is copied whole."""
PACKET_LIMIT = 4096
"""Bytes of the longest packet to a guest, header included and trailer not: what every supported Linux reads.

Since Linux 5.15.19 and 5.16.5 ("Drivers: hv: balloon: account for vmbus packet header in max_pkt_size") hv_balloon
reads longer ones; from 5.12 to then it took the first 4096 bytes for the whole packet and lost its place. Heartbeat,
shutdown and timesync never read more. Hyper-V keeps to it too.
"""

_HEADER = PacketHeader._struct
HEADER_SIZE = PacketHeader.SIZE
_TRAILER = Struct("<II")


class BrokenRing(GuestError):
    """The ring contains invalid indices or lengths; nothing after that can be trusted."""


MAX_PAYLOAD = PACKET_LIMIT - HEADER_SIZE
"""Bytes of the longest payload to a guest with a ring of ordinary size."""


def packet_size(payload_size: int) -> int:
    """Return the bytes of ring that a packet takes: header, padded payload (with its descriptor), trailer."""
    return HEADER_SIZE + (payload_size + 7 & ~7) + TRAILER_SIZE


def build_packet(packet: Packet) -> bytes:
    """Return a packet's header, descriptor and payload, padded to 8 bytes, without its trailer."""
    body = packet.descriptor + packet.payload if packet.descriptor else packet.payload
    padded = len(body) + 7 & ~7
    offset8, length8 = HEADER_SIZE + len(packet.descriptor) >> 3, HEADER_SIZE + padded >> 3
    header = _HEADER.pack(packet.type, offset8, length8, packet.flags, packet.transaction_id)
    return header + body if padded == len(body) else header + body + bytes(padded - len(body))


def parse_packet(data: bytes) -> Packet:
    """Read a packet from its header, descriptor and payload. Raises BrokenRing."""
    if len(data) < HEADER_SIZE:
        raise BrokenRing(f"a packet of {len(data)} bytes: less than its header")
    kind, offset8, length8, flags, transaction_id = _HEADER.unpack_from(data)
    offset, length = offset8 * 8, length8 * 8
    if offset < HEADER_SIZE or length < offset or length > len(data):
        raise BrokenRing(f"packet: data at {offset}, length {length}, {len(data)} bytes there")
    return Packet(kind, flags, transaction_id, data[offset:length], data[HEADER_SIZE:offset])


class Ring:
    """Header words and data area of a ring, over pages that lie anywhere in guest memory.

    `pages`: guest physical addresses, the header page first. Raises GuestMemoryError if one is not RAM. Indices that
    are read and stored cross `tap`, with `fields` and the ring's name in `pair`, which has both rings of the channel.
    """

    def __init__(
        self,
        memory: GuestMemory,
        pages: Sequence[int],
        *,
        tap: Tap | None = None,
        fields: Fields | None = None,
        pair: Mapping[str, Ring] | None = None,
    ) -> None:
        if len(pages) < 2:
            raise BrokenRing(f"a ring of {len(pages)} pages: needs a header and data")
        self.tap = Tap("index") if tap is None else tap
        self._fields = fields or {}
        self._pair = pair or {}
        self.size = (len(pages) - 1) * PAGE_SIZE
        self.words = memory.view(pages[0], PAGE_SIZE).cast("I")
        self._starts: list[int] = []  # where in the data area each piece begins
        self._pieces: list[memoryview] = []
        first = 1
        for index in range(2, len(pages) + 1):  # neighbours in one region become one piece
            adjacent = index < len(pages) and pages[index] == pages[index - 1] + PAGE_SIZE
            if adjacent and memory.contains(pages[first], (index + 1 - first) * PAGE_SIZE):
                continue
            self._starts.append((first - 1) * PAGE_SIZE)
            self._pieces.append(memory.view(pages[first], (index - first) * PAGE_SIZE))
            first = index

    def index(self, word: int) -> int:
        """Read WRITE_INDEX or READ_INDEX, once. Raises BrokenRing if it points outside or between 8-byte units."""
        value = self.words[word]
        if self.tap.on:
            value = self._tap_read(word, value)
        if value >= self.size or value & 7:
            name = "write" if word == WRITE_INDEX else "read"
            raise BrokenRing(f"{name} index {value:#x} in a ring of {self.size:#x} bytes")
        return value

    def _tap_read(self, word: int, value: int) -> int:
        fields = {**self._fields, "word": "write" if word == WRITE_INDEX else "read", "value": value}
        seen = self.tap.cross("in", b"", fields, lambda item: int(item.fields["value"]) & 0xFFFFFFFF)
        return value if seen is None else int(seen)

    def tap_store(self, word: int, value: int) -> None:
        """Store WRITE_INDEX or READ_INDEX through the tap."""
        fields = {**self._fields, "word": "write" if word == WRITE_INDEX else "read", "value": value}
        self.tap.cross("out", b"", fields, self._store)

    def _store(self, item: Item) -> None:
        ring = self._pair.get(str(item.fields["ring"]), self)
        ring.words[WORDS[str(item.fields["word"])]] = int(item.fields["value"]) & 0xFFFFFFFF

    def copy_out(self, start: int, length: int) -> bytes:
        """Return `length` bytes (at most `size`) of the data area from `start`, wrapping at its end."""
        piece = bisect_right(self._starts, start) - 1
        skip = start - self._starts[piece]
        data = bytes(self._pieces[piece][skip : skip + length])
        if len(data) == length:
            return data
        parts, missing = [data], length - len(data)
        while missing:
            piece = (piece + 1) % len(self._pieces)
            parts.append(bytes(self._pieces[piece][:missing]))
            missing -= len(parts[-1])
        return b"".join(parts)

    def copy_in(self, start: int, data: bytes) -> None:
        """Store `data` (at most `size` bytes) from `start`, wrapping at the end."""
        piece = bisect_right(self._starts, start) - 1
        view, skip, done = self._pieces[piece], start - self._starts[piece], 0
        if skip + len(data) <= len(view):
            view[skip : skip + len(data)] = data
            return
        while done < len(data):
            view = self._pieces[piece]
            step = min(len(view) - skip, len(data) - done)
            view[skip : skip + step] = data[done : done + step]
            done += step
            piece, skip = (piece + 1) % len(self._pieces), 0


class RingReader:
    """The host's end of `ring`, which the guest writes.

    Read in batches: `mask()`, then `read` and `publish` as often as wanted, then `unmask()`, which says whether to
    begin again.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.size = ring.size
        self._next = ring.index(READ_INDEX)  # ours alone from now on: the guest's changes to it are ignored
        self._published = self._next

    def available(self) -> int:
        """Return the number of bytes to be read. Raises BrokenRing."""
        return (self.ring.index(WRITE_INDEX) - self._next) % self.size

    def read(self, limit: int, max_bytes: int | None = None) -> list[Packet]:
        """Return up to `limit` packets; the last one may bring their sum above `max_bytes` (of the ring). The guest
        sees their room as free only after `publish`.

        Raises BrokenRing at an invalid packet, once all packets before it were returned.
        """
        ring, size, position = self.ring, self.size, self._next
        left = (ring.index(WRITE_INDEX) - position) % size
        packets: list[Packet] = []
        enough = 0 if max_bytes is None else left - max_bytes  # bytes left of which no more are read
        data, at = b"", 0  # a copy of the ring; the next packet is at `at`
        while left and len(packets) < limit and (left > enough or not packets):
            if left < HEADER_SIZE + TRAILER_SIZE:
                if packets:
                    break
                raise BrokenRing(f"{left} bytes at {position:#x}: less than the smallest packet")
            if len(data) - at < HEADER_SIZE:
                data, at = ring.copy_out(position, min(left, READ_AT_ONCE)), 0
            kind, offset8, length8, flags, transaction_id = _HEADER.unpack_from(data, at)
            offset, length = offset8 * 8, length8 * 8
            if offset < HEADER_SIZE or length < offset or length + TRAILER_SIZE > left:
                if packets:
                    break
                raise BrokenRing(f"packet at {position:#x}: data at {offset}, length {length}, {left} bytes there")
            if at + length > len(data):  # the header that was checked, and what follows it
                rest = ring.copy_out((position + HEADER_SIZE) % size, length - HEADER_SIZE)
                data, at = data[at : at + HEADER_SIZE] + rest, 0
            descriptor = data[at + HEADER_SIZE : at + offset]
            packets.append(Packet(kind, flags, transaction_id, data[at + offset : at + length], descriptor))
            at += length + TRAILER_SIZE
            position = (position + length + TRAILER_SIZE) % size
            left -= length + TRAILER_SIZE
        self._next = position
        return packets

    def publish(self) -> bool:
        """Store the read index. True: the guest waits for that much room and must be signalled."""
        if self._next == self._published:
            return False
        words, size = self.ring.words, self.size
        before, self._published = self._published, self._next
        if self.ring.tap.on:
            self.ring.tap_store(READ_INDEX, self._next)
        else:
            words[READ_INDEX] = self._next
        # Read index before pending size. Partner: the guest stores the pending size, then looks at the read index
        # again (Linux hv_ringbuffer_write's callers through hv_get_bytes_to_write, e.g. netvsc and hvsock).
        memory_barrier()
        pending = words[PENDING_SEND_SIZE]
        if not pending:
            return False
        # Linux asks for "more than pending" bytes. It had them before: no signal, as hvsock never clears its request.
        write = self.ring.index(WRITE_INDEX)
        return size - (write - before) % size <= pending < size - (write - self._next) % size

    def mask(self) -> None:
        """Set the interrupt mask: the guest does not signal while we read anyway."""
        self.ring.words[INTERRUPT_MASK] = 1

    def unmask(self) -> bool:
        """Clear the interrupt mask. True: a packet came meanwhile and will not be signalled, so read on."""
        self.ring.words[INTERRUPT_MASK] = 0
        # Mask before write index. Partner: hv_signal_on_write, whose virt_mb() stands between storing the write
        # index and reading our mask. One of the two sides must see the other's store.
        memory_barrier()
        return self.available() != 0


class RingWriter:
    """The host's end of `ring`, which the guest reads."""

    def __init__(self, ring: Ring, packet_limit: int = PACKET_LIMIT) -> None:
        self.ring = ring
        self.size = ring.size
        self._longest = packet_limit - HEADER_SIZE  # payload
        self._next = ring.index(WRITE_INDEX)  # ours alone: the guest's changes to it are ignored
        self._requested = False
        self.max_payload = min(self._longest, (self.size - 1 - HEADER_SIZE - TRAILER_SIZE) & ~7)
        """The largest payload that fits into the ring: that of PACKET_LIMIT, or less with one data page (4064); more
        for a driver that reads longer packets.
        """

    def _free(self) -> int:
        """Return the free bytes, one of which must stay free."""
        return self.size - (self._next - self.ring.index(READ_INDEX)) % self.size

    def used(self) -> int:
        """Return the number of bytes that the guest has not read yet. Raises BrokenRing."""
        return self.size - self._free()

    @property
    def guest_signals_room(self) -> bool:
        """Whether the guest supports the pending size (its feature bit)."""
        return bool(self.ring.words[FEATURE_BITS] & FEATURE_PENDING_SEND_SIZE)

    def room(self) -> int:
        """Return the largest payload for which there is room now. Raises BrokenRing."""
        return max(0, min(self._longest, (self._free() - 1 - HEADER_SIZE - TRAILER_SIZE) & ~7))

    def has_room(self, payload_size: int) -> bool:
        """Whether there is room for such a payload now. Raises BrokenRing."""
        return packet_size(payload_size) < self._free()

    def request_room(self, payload_size: int) -> bool:
        """Request a signal once such a payload fits (pending size). True: it fits already."""
        self.ring.words[PENDING_SEND_SIZE] = packet_size(payload_size)
        self._requested = True
        # Pending size before read index. Partner: hv_pkt_iter_close, whose virt_mb() stands between storing the read
        # index and reading our pending size.
        memory_barrier()
        return self.has_room(payload_size)

    def clear_request(self) -> None:
        """Withdraw the request for a signal."""
        if self._requested:
            self.ring.words[PENDING_SEND_SIZE] = 0
            self._requested = False

    def build(self, packet: Packet) -> bytes:
        """Return the packet's bytes, with the trailer that it has if it is stored next."""
        return build_packet(packet) + self.trailer()

    def trailer(self) -> bytes:
        """Return the trailer of the packet that is stored next."""
        return _TRAILER.pack(0, self._next)

    def fits(self, length: int) -> bool:
        """Whether so many bytes of packets fit now. Raises BrokenRing."""
        return length < self._free()

    def write(self, packet: Packet) -> bool:
        """Store one packet, for which there must be room. True: the guest must be signalled."""
        return self.store(build_packet(packet) + _TRAILER.pack(0, self._next))

    def store(self, data: bytes, advance: int | None = None) -> bool:
        """Store bytes at the write index and move it by `advance`, by default their length. True: the guest must be
        signalled. Whole packets only, but for tests that break the ring."""
        old = self._next
        assert len(data) < self.size, "write without room"  # not _free(): the guest may have moved its index since
        self.ring.copy_in(old, data)
        self._next = (old + (len(data) if advance is None else advance)) % self.size
        # x86 keeps stores in order: the guest sees the data before the index.
        words = self.ring.words
        if self.ring.tap.on:
            self.ring.tap_store(WRITE_INDEX, self._next)
        else:
            words[WRITE_INDEX] = self._next
        # Write index before mask and read index. Partner: hv_end_read, whose virt_mb() stands between clearing the
        # mask and looking for more packets.
        memory_barrier()
        return words[INTERRUPT_MASK] == 0 and words[READ_INDEX] == old


def _demo() -> None:
    """Write packets into a small ring and take them out again, drawing it after each step."""
    memory = GuestMemory.flat(1 << 20)
    pages = [0x3000, 0x8000, 0x5000]  # scattered on purpose
    writer, reader = RingWriter(Ring(memory, pages)), RingReader(Ring(memory, pages))
    words = Ring(memory, pages).words

    def draw(step: str) -> None:
        scale, read, write = 64, words[READ_INDEX], words[WRITE_INDEX]
        used = (write - read) % writer.size
        cells = ["#" if (at * writer.size // scale - read) % writer.size < used else "." for at in range(scale)]
        print(f"{step:<28} [{''.join(cells)}] read {read:5} write {write:5}")

    draw("empty")
    for number, size in enumerate([1000, 3000, 2000]):
        signal = writer.write(Packet(PacketType.IN_BAND, 0, number, bytes([65 + number]) * size))
        draw(f"wrote {size} bytes" + (", signal" if signal else ""))
    print(f"  room for {writer.room()} more, waits for 4000: {not writer.request_room(4000)}")
    for packet in reader.read(2):
        print(f"  read packet {packet.transaction_id}: {len(packet.payload)} x {packet.payload[:1]!r}")
    reader_signals = reader.publish()
    draw("published two" + (", signal" if reader_signals else ""))
    writer.write(Packet(PacketType.IN_BAND, 0, 3, b"D" * 4000))
    draw("wrote 4000 bytes, wrapped")
    print(f"  read {[packet.transaction_id for packet in reader.read(9)]}")
    reader.publish()
    draw("published all")


if __name__ == "__main__":
    _demo()
