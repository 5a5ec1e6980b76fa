"""Writes the guest made without leaving: the ring KVM queues them in.

Source: Linux include/uapi/linux/kvm.h, struct kvm_coalesced_mmio_ring; virt/kvm/coalesced_mmio.c.

    first          last          The VM has one ring, in a page that every vCPU's mmap shows.
      v              v           KVM adds at `last`, we take at `first`. A full ring (one slot is kept free)
    [ w ][ w ][ w ][   ][   ]    makes writes leave the guest again, so nothing is lost.
"""

from __future__ import annotations

from mmap import mmap
from struct import Struct
from threading import Lock
from typing import Final, NamedTuple

from pyvmm.kvm.abi import RING_ENTRIES, RING_HEAD_SIZE

_ENTRY: Final = Struct("<QII8s")


class CoalescedWrite(NamedTuple):
    """One queued write, oldest first. `pio`: a port, else a guest physical address."""

    addr: int
    data: bytes
    pio: bool


class CoalescedRing:
    """The VM's ring. Any thread may drain it; the lock keeps each write from being taken twice.

    Writes taken by different threads have no order among them: who cares about order (a serial port) handles
    them under its own lock, taken before draining.
    """

    def __init__(self, shared: mmap, offset: int) -> None:
        self._lock = Lock()
        self._shared = shared
        self._entries = offset + RING_HEAD_SIZE
        self._view = memoryview(shared)
        self._head = self._view[offset : offset + RING_HEAD_SIZE].cast("I")  # first, last

    def release(self) -> None:
        """Let go of the shared page so that it can be unmapped."""
        with self._lock:
            self._head.release()
            self._view.release()

    def drain(self) -> list[CoalescedWrite]:
        """Take all that is queued."""
        head = self._head
        if head[0] == head[1]:
            return []
        writes = []
        with self._lock:
            # KVM publishes `last` after the entry (smp_wmb in coalesced_mmio_write); x86 keeps our loads in order.
            first, last = head[0] % RING_ENTRIES, head[1] % RING_ENTRIES
            while first != last:
                addr, length, pio, data = _ENTRY.unpack_from(self._shared, self._entries + first * _ENTRY.size)
                writes.append(CoalescedWrite(addr, data[: min(length, 8)], bool(pio)))
                first = (first + 1) % RING_ENTRIES
            head[0] = first
        return writes
