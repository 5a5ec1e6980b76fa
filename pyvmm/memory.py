"""Guest RAM: host memory behind guest physical addresses, with every access checked.

Guest memory is ordinary memory of this process. KVM maps it into the guest (`pyvmm.kvm.Vm.set_memory`); this module
reads and writes it from outside. A `Region` is one contiguous stretch; `GuestMemory` is the set of them, looked up by
guest physical address (gpa). The guest runs meanwhile: copy first, then check and use the copy.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from pyvmm.atomic import bit_test_and_set, compare_exchange, memory_barrier
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.private_copy import copy_used
from pyvmm.wire import Buffer

__all__ = ["PAGE_SIZE", "GuestMemory", "HostMemory", "Region", "memory_barrier"]

PAGE_SIZE = 4096
HUGE_SIZE = 2 << 20
_MADV_DONTNEED, _MADV_REMOVE, _MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 4, 9, 14, 23
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_SPARE_MEMORY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p


class HostMemory:
    """A memory mapping of this process that backs guest RAM: anonymous and private, or a shared file, or frozen: a
    private copy of either, for forks.

    `address` is 2 MiB aligned, so that the host can use huge pages for it; a shared one is aligned to `page_size`,
    the smallest piece that can be discarded. Raises HostError if the host refuses.
    """

    def __init__(
        self, size: int, *, fd: int = -1, file_offset: int = 0, page_size: int = PAGE_SIZE, huge: bool = True
    ) -> None:
        self.size = size
        self.closed = False
        self.shared = fd >= 0
        self.frozen_parts: list[tuple[int, int]] | None = None
        """Where the copy lies that was made by `freeze`, as (offset, bytes); None before."""
        self.page_size = page_size
        flags, spare = (mmap.MAP_SHARED, 0) if self.shared else (_SPARE_MEMORY, HUGE_SIZE)
        start = _map(None, size + spare, flags, fd, file_offset)
        self.address = start if self.shared else -(-start // HUGE_SIZE) * HUGE_SIZE
        # Not mmap.mmap: that keeps a descriptor of the file, and with it the memory, as long as a view exists.
        addresses = (ctypes.c_ubyte * size).from_address(self.address)
        weakref.finalize(addresses, _libc.munmap, start, size + spare).atexit = False
        self.view = memoryview(addresses).cast("B")
        if huge and not self.shared:
            _libc.madvise(self.address, size, _MADV_HUGEPAGE)  # a hint: kernels without THP return EINVAL

    def discard(self, offset: int, length: int) -> None:
        """Return the pages to the host; they read as zeros from now on. Raises HostError if it refuses.

        Pages of the backing (`page_size`) that the range covers only in part are kept.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise AssertionError(f"discard {length} at {offset} of {self.size}")
        if self.page_size > PAGE_SIZE:
            end = (offset + length) // self.page_size * self.page_size
            offset = -(-offset // self.page_size) * self.page_size
            length = max(0, end - offset)
        if length and self.frozen_parts is not None:
            self._discard_frozen(offset, length)
        elif length:
            self._advise(offset, length, _MADV_REMOVE if self.shared else _MADV_DONTNEED)

    def _discard_frozen(self, offset: int, length: int) -> None:
        """Replace pages by empty ones: MADV_DONTNEED would bring back what they held when they were frozen."""
        try:
            _map(self.address + offset, length, _SPARE_MEMORY | _MAP_FIXED)
        except HostError:  # vm.max_map_count: each hole divides a mapping
            ctypes.memset(self.address + offset, 0, length)

    def freeze(self) -> None:
        """Make the memory a private copy of what it holds now, which this process and its forks share until they
        write to it. Nothing may use the memory meanwhile, and no VM may have it mapped. Raises HostError.
        """
        fd = os.memfd_create("pyvmm-frozen", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, self.size)
            untouched_is_zero = not self.shared and self.frozen_parts is None
            used = copy_used(self.view, self.address, fd, untouched_is_zero=untouched_is_zero)
            _map(self.address, self.size, _SPARE_MEMORY | _MAP_FIXED)
            for offset, length in used:
                _map(self.address + offset, length, mmap.MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED, fd, offset)
        except OSError as error:
            raise HostError(f"cannot copy {self.size >> 20} MiB of guest memory: {error.strerror}") from error
        finally:
            os.close(fd)
        self.frozen_parts, self.shared, self.page_size = used, False, PAGE_SIZE

    def drop_mappings(self, offset: int) -> None:
        """Have KVM forget how the guest reaches a page; the next access maps it again. Nothing may access the page
        meanwhile, neither this process nor a vCPU. Raises HostError.
        """
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            if _libc.mprotect(self.address + offset, PAGE_SIZE, protection):
                raise HostError(f"mprotect: {os.strerror(ctypes.get_errno())}")

    def populate(self, offset: int, length: int) -> None:
        """Allocate the memory now (Linux 5.14 or later). Raises HostError if the host lacks memory."""
        self._advise(offset, length, _MADV_POPULATE_WRITE)

    def _advise(self, offset: int, length: int, advice: int) -> None:
        if _libc.madvise(self.address + offset, length, advice):
            code = ctypes.get_errno()
            raise HostError(f"madvise({length >> 10} KiB, {advice}): {os.strerror(code)}")

    def close(self) -> None:
        """Return the memory to the host. The addresses stay mapped, reading as zeros, until the last view of them is
        gone, which may be part of a reference cycle. Harmless twice.
        """
        if not self.closed:
            self.closed = True
            _map(self.address, self.size, _SPARE_MEMORY | _MAP_FIXED)
            self.view.release()


def _map(address: int | None, size: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Call mmap(2) for a readable and writable mapping. Raises HostError."""
    mapped: int | None = None
    if 0 < size < 1 << 63:
        mapped = _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset)
    if mapped in (None, _MAP_FAILED):
        code = ctypes.get_errno() or errno.ENOMEM
        raise HostError(f"cannot map {size >> 20} MiB of guest memory: {os.strerror(code)}")
    return mapped


@dataclass(slots=True)
class Region:
    """`size` bytes of guest RAM at `gpa`, backed by `memory` from `offset` on."""

    gpa: int
    size: int
    memory: HostMemory
    offset: int = 0
    view: memoryview = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.view = self.memory.view[self.offset : self.offset + self.size]

    @property
    def end(self) -> int:
        return self.gpa + self.size

    @property
    def address(self) -> int:
        """Return the region's start address in this process."""
        return self.memory.address + self.offset


class GuestMemory:
    """All RAM of a guest, by guest physical address.

    Changed (`add`, `remove`, `replace`) on one thread; read and written from any. A lookup just before a
    removal still reaches the backing memory, which no guest sees any more.
    Every failed access raises GuestMemoryError, which names its length and address.
    """

    def __init__(self, regions: list[Region] | None = None) -> None:
        self._table: tuple[list[int], list[Region]] = ([], [])
        for region in regions or []:
            self.add(region)

    @classmethod
    def flat(cls, size: int, gpa: int = 0) -> GuestMemory:
        """Return memory of one region of fresh RAM, for tests and demos."""
        return cls([Region(gpa, size, HostMemory(size))])

    def __iter__(self) -> Iterator[Region]:
        return iter(self._table[1])

    @property
    def size(self) -> int:
        """Return the total bytes of RAM."""
        return sum(r.size for r in self._table[1])

    def add(self, region: Region) -> None:
        """Add `region` to the guest's RAM. Overlap is our bug."""
        self.replace(None, region)

    def remove(self, region: Region) -> None:
        """Remove `region`; its HostMemory stays the caller's."""
        self.replace(region, None)

    def replace(self, old: Region | None, new: Region | None) -> None:
        """Replace `old` by `new`, either of which may be None: readers find one of them at any moment."""
        regions = [r for r in self._table[1] if r is not old]
        if new is not None:
            regions = sorted([*regions, new], key=lambda r: r.gpa)
        for low, high in pairwise(regions):
            assert low.end <= high.gpa, f"regions overlap at {high.gpa:#x}"
        self._table = [r.gpa for r in regions], regions  # one assignment: readers in other threads see both or none

    def find(self, gpa: int, length: int) -> Region:
        """Return the region that holds all of [gpa, gpa + length). Raises GuestMemoryError."""
        starts, regions = self._table
        index = bisect_right(starts, gpa) - 1
        if index >= 0 and length >= 0:
            region = regions[index]
            if region.gpa <= gpa and gpa + length <= region.end:
                return region
        raise GuestMemoryError(f"{length} bytes at gpa {gpa:#x}: not guest RAM")

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether [gpa, gpa + length) is RAM of one region."""
        try:
            self.find(gpa, length)
        except GuestMemoryError:
            return False
        return True

    def pieces(self, gpa: int, length: int) -> Iterator[tuple[Region, int, int]]:
        """Return the parts of [gpa, gpa + length) that are RAM: (region, offset in it, bytes), by rising address."""
        end = gpa + length
        starts, regions = self._table
        for region in regions[max(0, bisect_right(starts, gpa) - 1) :]:
            if region.gpa >= end:
                break
            low, high = max(gpa, region.gpa), min(end, region.end)
            if low < high:
                yield region, low - region.gpa, high - low

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `gpa`."""
        region = self.find(gpa, length)
        offset = gpa - region.gpa
        return bytes(region.view[offset : offset + length])

    def write(self, gpa: int, data: Buffer) -> None:
        """Store `data` at `gpa`."""
        region = self.find(gpa, len(data))
        offset = gpa - region.gpa
        region.view[offset : offset + len(data)] = data

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a live view of guest memory. For rings: read an index once a step, as the guest may change it."""
        region = self.find(gpa, length)
        offset = gpa - region.gpa
        return region.view[offset : offset + length]

    def host_address(self, gpa: int, length: int) -> int:
        """Return the address of [gpa, gpa + length) in this process; valid as long as its region."""
        region = self.find(gpa, length)
        return region.address + gpa - region.gpa

    def set_bit(self, gpa: int, bit: int) -> bool:
        """Atomically set `bit` (0..32767) of the bit string at `gpa`; return True if it was clear. A full barrier."""
        address = self.host_address(gpa, bit // 32 * 4 + 4)
        return not bit_test_and_set(address, bit)

    def compare_exchange(self, gpa: int, expected: int, new: int) -> int:
        """Atomically store the u32 `new` at `gpa` if it holds `expected`; return the old value. A full barrier."""
        return int(compare_exchange(self.host_address(gpa, 4), expected, new))

    def drop_mappings(self, gpa: int) -> None:
        """Have KVM forget how the guest reaches the page at `gpa`: see `HostMemory.drop_mappings`. Raises
        GuestMemoryError, HostError.
        """
        region = self.find(gpa, PAGE_SIZE)
        region.memory.drop_mappings(region.offset + gpa - region.gpa)

    def discard(self, gpa: int, length: int) -> int:
        """Return the RAM in [gpa, gpa + length) to the host; it reads as zeros. Returns the bytes discarded."""
        done = 0
        for region, offset, size in self.pieces(gpa, length):
            region.memory.discard(region.offset + offset, size)
            done += size
        return done
