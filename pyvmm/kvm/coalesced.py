"""Writes the guest made without leaving: the ring KVM queues them in.

Source: Linux include/uapi/linux/kvm.h, struct kvm_coalesced_mmio_ring; virt/kvm/coalesced_mmio.c.

    first          last          The VM has one ring, in a page that every vCPU's mmap shows.
      v              v           KVM adds at `last`, we take at `first`. A full ring (one slot is kept free)
    [ w ][ w ][ w ][   ][   ]    makes writes leave the guest again, so nothing is lost.

A full ring can be emptied on the spot, as it is, and the guest goes on at once (`spill`). Sorting out what is in it
costs ten times as much, and hardly more for a lot at a time.

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
SPILLED_LIMIT: Final = 64 << 10
"""Bytes of entries that may be spilled between two drains: sixteen full rings, some 2,500 writes."""


class CoalescedWrite(NamedTuple):
    """Queued writes to one place, one after another: `data` is theirs, `size` bytes each. `pio`: `addr` is a port,
    else a guest physical address.
    """

    addr: int
    size: int
    data: bytes
    pio: bool


class CoalescedRing:
    """The VM's ring. Any thread may drain it; the lock keeps each write from being taken twice.

    Writes taken by different threads have no order among them: who cares about order (a serial port) handles
    them under its own lock, taken before draining.
    """

    def __init__(self, shared: mmap, offset: int) -> None:
        self._lock = Lock()
        self._entries = offset + RING_HEAD_SIZE
        self._view = memoryview(shared)
        self._spilled = bytearray()  # entries
        self._head = self._view[offset : offset + RING_HEAD_SIZE].cast("I")  # first, last

    def release(self) -> None:
        """Let go of the shared page so that it can be unmapped."""
        with self._lock:
            self._head.release()
            self._view.release()

    def drain(self) -> list[CoalescedWrite]:
        """Take all that is queued, oldest first."""
        head = self._head
        if head[0] == head[1] and not self._spilled:
            return []
        with self._lock:
            self._take()
            taken, self._spilled = self._spilled, bytearray()
        return _in_runs(taken)

    def spill(self, addr: int, byte: int, *, pio: bool) -> bool:
        """Take a byte written to `addr` that found the ring full, and all before it, for the next `drain`. Whether
        that was done: when much was spilled already, whoever drains shall come first.
        """
        with self._lock:
            if len(self._spilled) >= SPILLED_LIMIT:
                return False
            self._take()
            self._spilled += _ENTRY.pack(addr, 1, pio, byte)
        return True

    def _take(self) -> None:
        """Move the ring's entries to what was spilled."""
        head = self._head
        # KVM publishes `last` after the entry (smp_wmb in coalesced_mmio_write); x86 keeps our loads in order.
        first, last = head[0] % RING_ENTRIES, head[1] % RING_ENTRIES
        if first > last:
            self._spilled += self._copy(first, RING_ENTRIES)
            first = 0
        self._spilled += self._copy(first, last)
        head[0] = last

    def _copy(self, first: int, last: int) -> memoryview:
        return self._view[self._entries + first * _ENTRY_SIZE : self._entries + last * _ENTRY_SIZE]


def _in_runs(entries: bytearray) -> list[CoalescedWrite]:
    """Ring entries as writes. A console's line is one run of a hundred: no Python for each byte of it."""
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
