"""Packets of a channel, and the descriptors with which two packet types refer to other guest memory.

Source: Linux include/linux/hyperv.h, struct vmdata_gpa_direct and vmtransfer_page_packet_header.

    TRANSFER_PAGES  host to guest   set u16 | sender owns the set u8 | 0 u8 | count u32 | (length u32, offset u32) ...
    GPA_DIRECT      guest to host   0 u32 | count u32 | (length u32, offset u32, frame u64 ...) ...

The ranges of the first lie in an established GPADL, which the set's number identifies; the frames of the second are
shared by the packet itself, until it is completed. `ring` shows the descriptor's place in a packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct, pack, unpack_from
from typing import Annotated

from pyvmm.errors import GuestProtocolError, WireError
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.vmbus.gpadl import WORD_SIZE, GpaRange
from pyvmm.wire import Wire, u16, u64, wire

PAGE_SHIFT = 12
_RANGE = Struct("<IIQ")
_ONE = pack("<I", 1)
DIRECT_PAGES_LIMIT = 2048
"""Pages that one GPA_DIRECT packet may name, 8 MiB: Linux sends what a disk allows (512 KiB to Hyper-V's) or less."""


PAGES_NOT_MERGED = 64
"""Pages of a range up to which it costs more to find neighbours among scattered pages than to pass each on."""


class PacketType(IntEnum):
    """VM_PKT_*: the types of packets that occur on Linux's channels.

    Source: Linux include/linux/hyperv.h, enum vmbus_packet_type.
    """

    IN_BAND = 6  # VM_PKT_DATA_INBAND: the data is in the packet.
    TRANSFER_PAGES = 7  # VM_PKT_DATA_USING_XFER_PAGES: the data is in a GPADL that was made before.
    GPA_DIRECT = 9  # VM_PKT_DATA_USING_GPA_DIRECT: the packet names the guest's pages with the data.
    COMPLETION = 0xB  # VM_PKT_COMP: answers the packet with the same transaction id.


class PacketFlag(IntFlag):
    COMPLETION_REQUESTED = 1


@wire
class PacketHeader(Wire):
    """struct vmpacket_descriptor. Offset of the payload and length of the packet count units of 8 bytes."""

    type: Annotated[u16, PacketType]
    offset8: u16
    length8: u16
    flags: Annotated[u16, PacketFlag]
    transaction: u64


@dataclass(slots=True)
class Packet:
    """One packet. `payload` is padded to 8 bytes when it comes out of a ring: the format has no exact length.

    `descriptor` lies between the header and the payload, in whole units of 8 bytes; in most packets it is empty.
    """

    type: int
    flags: int
    transaction_id: int
    payload: bytes
    descriptor: bytes = b""

    @property
    def size(self) -> int:
        """Return the bytes after the header, padding not included."""
        return len(self.descriptor) + len(self.payload)


def parse_direct(descriptor: bytes) -> list[GpaRange]:
    """Return the ranges of a GPA_DIRECT packet; whether they are RAM is checked on use. Raises WireError if they do
    not fit into the descriptor, GuestProtocolError if they are empty, odd or more than DIRECT_PAGES_LIMIT.
    """
    if len(descriptor) < 8:
        raise WireError(f"GPA_DIRECT: a descriptor of {len(descriptor)} bytes, needs 8")
    (count,) = unpack_from("<I", descriptor, 4)
    ranges: list[GpaRange] = []
    position, pages_left = 8, DIRECT_PAGES_LIMIT
    for _ in range(min(count, DIRECT_PAGES_LIMIT + 1)):  # each takes a page at least
        if len(descriptor) - position < WORD_SIZE:
            raise WireError(f"GPA_DIRECT: {count} ranges in {len(descriptor)} bytes")
        length, offset = unpack_from("<II", descriptor, position)
        pages = -(-(offset + length) // PAGE_SIZE)
        if not length or offset >= PAGE_SIZE or pages > pages_left:
            raise GuestProtocolError(f"GPA_DIRECT: {length} bytes from {offset}, {pages_left} more pages may come")
        position += WORD_SIZE
        if pages > (len(descriptor) - position) // WORD_SIZE:
            raise WireError(f"GPA_DIRECT: a range of {pages} pages in {len(descriptor) - position} bytes")
        frames = unpack_from(f"<{pages}Q", descriptor, position)
        ranges.append(GpaRange(length, offset, [frame * PAGE_SIZE for frame in frames]))
        position += pages * WORD_SIZE
        pages_left -= pages
    return ranges


def direct_views(packet: Packet, memory: GuestMemory, limit: int) -> list[memoryview]:
    """Return live views of the memory that a GPA_DIRECT packet shares, in order, for preadv and pwritev: no copies.

    Raises WireError or GuestProtocolError as `parse_direct`, and for more than `limit` bytes; GuestMemoryError if a
    page is not RAM. Use them until the packet is completed or the channel closes, and no longer. preadv takes 1024
    at most (IOV_MAX); there may be as many as DIRECT_PAGES_LIMIT.
    """
    descriptor = packet.descriptor
    if len(descriptor) >= 8 and descriptor[4:8] != _ONE:
        return _views_of_many(descriptor, memory, limit)
    if len(descriptor) < 3 * WORD_SIZE:
        raise WireError(f"GPA_DIRECT: a descriptor of {len(descriptor)} bytes, needs {3 * WORD_SIZE}")
    length, offset, frame = _RANGE.unpack_from(descriptor, 8)
    pages = offset + length + PAGE_SIZE - 1 >> PAGE_SHIFT
    if not length or offset >= PAGE_SIZE or pages > DIRECT_PAGES_LIMIT:
        raise GuestProtocolError(f"GPA_DIRECT: {length} bytes from {offset}, {DIRECT_PAGES_LIMIT} pages may come")
    if length > limit:
        raise _too_long(length, limit)
    if pages > len(descriptor) // WORD_SIZE - 2:
        raise WireError(f"GPA_DIRECT: a range of {pages} pages in {len(descriptor)} bytes")
    if pages == 1:
        return [memory.view(frame * PAGE_SIZE + offset, length)]
    frames = unpack_from(f"<{pages}Q", descriptor, 16)
    if frames[-1] - frame == pages - 1 and frames == tuple(range(frame, frame + pages)):
        gpa = frame * PAGE_SIZE + offset
        if memory.contains(gpa, length):
            return [memory.view(gpa, length)]
    if pages <= PAGES_NOT_MERGED:
        low = min(frames)
        size = max(frames) + 1 - low << PAGE_SHIFT
        if memory.contains(low << PAGE_SHIFT, size):
            view = memory.view(low << PAGE_SHIFT, size)
            starts = [each - low << PAGE_SHIFT for each in frames]
            views = [view[start : start + PAGE_SIZE] for start in starts]
            views[0] = views[0][offset:]
            views[-1] = view[starts[-1] : starts[-1] + offset + length - (pages - 1 << PAGE_SHIFT)]
            return views
    return GpaRange(length, offset, [each * PAGE_SIZE for each in frames]).views(memory)


def _views_of_many(descriptor: bytes, memory: GuestMemory, limit: int) -> list[memoryview]:
    """Do the work of `direct_views` for several ranges, which a network card's frame has: each mostly within a page,
    and all in one region, so that neither a list of pages nor a look-up is made for each.
    """
    (count,) = unpack_from("<I", descriptor, 4)
    views: list[memoryview] = []
    position, end, pages_left = 8, len(descriptor), DIRECT_PAGES_LIMIT
    size = low = high = 0
    view = memoryview(b"")
    for _ in range(min(count, DIRECT_PAGES_LIMIT + 1)):  # each takes a page at least
        if end - position < 2 * WORD_SIZE:
            raise WireError(f"GPA_DIRECT: {count} ranges in {end} bytes")
        length, offset, frame = _RANGE.unpack_from(descriptor, position)
        pages = offset + length + PAGE_SIZE - 1 >> PAGE_SHIFT
        if not length or offset >= PAGE_SIZE or pages > pages_left:
            raise GuestProtocolError(f"GPA_DIRECT: {length} bytes from {offset}, {pages_left} more pages may come")
        pages_left -= pages
        size += length
        if size > limit:
            raise _too_long(size, limit)
        scattered = False
        if pages > 1:
            if pages > (end - position) // WORD_SIZE - 1:
                raise WireError(f"GPA_DIRECT: a range of {pages} pages in {end - position} bytes")
            frames = unpack_from(f"<{pages}Q", descriptor, position + WORD_SIZE)
            scattered = frames != tuple(range(frame, frame + pages))
        position += (1 + pages) * WORD_SIZE
        gpa = frame * PAGE_SIZE + offset
        if scattered:
            views += GpaRange(length, offset, [each * PAGE_SIZE for each in frames]).views(memory)
        elif low <= gpa <= high - length:
            views.append(view[gpa - low : gpa - low + length])
        elif memory.contains(gpa, length):
            region = memory.find(gpa, length)
            low, high, view = region.gpa, region.end, region.view
            views.append(view[gpa - low : gpa - low + length])
        else:  # in two regions, or no RAM
            views += GpaRange(length, offset, [(frame + each) * PAGE_SIZE for each in range(pages)]).views(memory)
    return views


def _too_long(size: int, limit: int) -> GuestProtocolError:
    return GuestProtocolError(f"GPA_DIRECT: {size} bytes, at most {limit}")


def transfer_pages(set_number: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return the descriptor of a TRANSFER_PAGES packet with (length, offset) of each range."""
    return pack("<HBBI", set_number, 0, 0, len(ranges)) + b"".join(pack("<II", *each) for each in ranges)
