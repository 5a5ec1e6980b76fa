"""The coalesced I/O ring, in which KVM queues guest writes instead of exiting to user space.

Source: Linux include/uapi/linux/kvm.h, struct kvm_coalesced_mmio_ring; virt/kvm/coalesced_mmio.c.

    first          last          The VM has one ring, in a page that every vCPU's mmap shows.
      v              v           KVM adds at `last`, we take at `first`. While the ring is full (one slot is kept
    [ w ][ w ][ w ][   ][   ]    free) each write is an exit again, so nothing is lost.

The vCPU thread that gets such an exit can copy the raw entries out of the full ring and resume the guest at once
(`drain_overflow`). Decoding the entries costs ten times as much as the copy, and hardly more for many at a time: that
is left to `drain`.

Pitfall: KVM counts the room left as (first - last - 1) % 170 in unsigned 32-bit arithmetic, and 170 does not divide
2^32. So the ring is full at 85 entries already, of 170, unless `last` has gone round the end since `first`.
"""

from __future__ import annotations

from array import array
from mmap import mmap
from struct import Struct
from threading import Lock
from typing import Final, NamedTuple

from pyvmm.kvm.abi import RING_ENTRIES, RING_HEAD_SIZE
from pyvmm.kvm.structs import CoalescedEntry

_ENTRY: Final = Struct("<QIIQ")  # address; length; pio; data
_ENTRY_SIZE: Final = _ENTRY.size
_DATA: Final = CoalescedEntry.data.offset
OVERFLOW_LIMIT: Final = 64 << 10
"""Bytes of raw entries copied out of a full ring between two drains: sixteen full rings, some 2,500 writes."""


class CoalescedWrite(NamedTuple):
    """Consecutive queued writes to one address: `data` holds `size` bytes of each. `pio`: `addr` is a port, else a
    guest physical address.
    """

    addr: int
    size: int
    data: bytes
    pio: bool


class CoalescedRing:
    """The VM's coalesced I/O ring. Any thread may drain it; the lock keeps each write from being taken twice.

    Writes taken by different threads have no order among them. A device that needs the order (a serial port) takes
    a lock of its own before it drains, and handles the writes under it.
    """

    def __init__(self, shared: mmap, offset: int) -> None:
        self._lock = Lock()
        self._entries = offset + RING_HEAD_SIZE
        self._view = memoryview(shared)
        self._overflow = bytearray()  # entries
        self._head = self._view[offset : offset + RING_HEAD_SIZE].cast("I")  # first, last

    def release(self) -> None:
        """Release the view of the shared page, so that the page can be unmapped."""
        with self._lock:
            self._head.release()
            self._view.release()

    def drain(self) -> list[CoalescedWrite]:
        """Remove and return all queued writes, oldest first."""
        head = self._head
        if head[0] == head[1] and not self._overflow:
            return []
        with self._lock:
            self._take()
            taken, self._overflow = self._overflow, bytearray()
        return _in_runs(taken)

    def drain_overflow(self, addr: int, byte: int, *, pio: bool) -> bool:
        """Copy the entries of a full ring, and the `byte` written to `addr` that found it full, for the next `drain`.

        Returns False, and does nothing, if OVERFLOW_LIMIT is reached: then a `drain` is due first.
        """
        with self._lock:
            if len(self._overflow) >= OVERFLOW_LIMIT:
                return False
            self._take()
            self._overflow += _ENTRY.pack(addr, 1, pio, byte)
        return True

    def _take(self) -> None:
        """Move the ring's raw entries to the overflow buffer."""
        head = self._head
        # KVM publishes `last` after the entry (smp_wmb in coalesced_mmio_write); x86 keeps our loads in order.
        first, last = head[0] % RING_ENTRIES, head[1] % RING_ENTRIES
        if first > last:
            self._overflow += self._copy(first, RING_ENTRIES)
            first = 0
        self._overflow += self._copy(first, last)
        head[0] = last

    def _copy(self, first: int, last: int) -> memoryview:
        return self._view[self._entries + first * _ENTRY_SIZE : self._entries + last * _ENTRY_SIZE]


def _in_runs(entries: bytearray) -> list[CoalescedWrite]:
    """Decode ring entries. A run of writes to one address (a console's line is a hundred) becomes one object."""
    if len(entries) == _ENTRY_SIZE:  # an index port before its data: a third of the work below
        addr, size, pio, word = _ENTRY.unpack(entries)
        size = min(size, 8)
        return [CoalescedWrite(addr, size, word.to_bytes(8, "little")[:size], pio != 0)]
    words = array("Q", entries)  # address; length and pio; data
    addresses, kinds = words[0::3], words[1::3]
    count, start = len(addresses), 0
    alike = addresses.tobytes() + kinds.tobytes() == entries[:8] * count + entries[8:16] * count
    writes = []
    while start < count:
        addr, kind = addresses[start], kinds[start]
        end = count if alike else start + 1
        while end < count and addresses[end] == addr and kinds[end] == kind:
            end += 1
        size, pio = min(kind & 0xFFFFFFFF, 8), kind >> 32 != 0
        first, last = start * _ENTRY_SIZE + _DATA, end * _ENTRY_SIZE
        if size == 1:
            data = bytes(entries[first:last:_ENTRY_SIZE])
        else:
            data = b"".join([entries[at : at + size] for at in range(first, last, _ENTRY_SIZE)])
        writes.append(CoalescedWrite(addr, size, data, pio))
        start = end
    return writes
