"""The window for hot-added memory: address space above everything else, mapped only where memory was granted.

    4 GiB / end of boot RAM      gpa                                                    gpa + backing.size
      |                           |  slot  |slot|      |  slot  |                         |
      |                           |  RAM        no RAM |  RAM   |  no RAM                 |

The address space costs nothing before its first use (MAP_NORESERVE), but for huge pages, which the host reserves.
A grant becomes RAM with page granularity: a KVM memory slot, and part of GuestMemory. A guest may touch any mapped
page, offered or not, so the mapping itself is the limit. Nothing else is mapped, not even the rest of a 128 MiB block
of which Linux was granted a part: Linux makes page structures for that rest and never touches it (seen with 5.10 to
7.2); a guest that does reads ones, and its writes are lost.

Each grant has a KVM slot of its own, for a slot cannot grow while the guest runs. When all slots are in use,
neighbours are merged: the vCPUs are stopped meanwhile, as otherwise one could access memory while it is unmapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count

from pyvmm.address_map import GIB, HIGH_RAM, HOT_ADD_SLOTS, MIB
from pyvmm.errors import ConfigError, HostError
from pyvmm.kvm import CpuidEntry
from pyvmm.machine import events as trace
from pyvmm.memory import PAGE_SIZE, GuestMemory, HostMemory, Region

BLOCK = 128 * MIB
"""The smallest block that Linux adds."""
BIG_BLOCK = 2 * GIB
BIG_GUEST = 64 * GIB
"""Boot RAM from which on Linux adds memory in larger blocks."""
ALIGNMENTS = (32 * GIB, BIG_BLOCK, BLOCK)
"""The first is the largest alignment that a guest can request in its capabilities message."""
DEFAULT_SLOTS = 64
"""Default limit of KVM slots for the window."""
PHYSICAL_BITS_UNKNOWN = 36


def block_size(boot_ram: int) -> int:
    """Return the largest memory block size that Linux uses with so much boot RAM."""
    return BIG_BLOCK if boot_ram >= BIG_GUEST else BLOCK


def window_size(boot_ram: int, size: int, page_size: int = PAGE_SIZE) -> int:
    """Return the address space in bytes for `size` bytes of hot-added memory: whole blocks of guest and host."""
    unit = max(block_size(boot_ram), page_size)
    return -(-size // unit) * unit


def physical_limit(cpuid: Iterable[CpuidEntry]) -> int:
    """Return the end of the guest CPU's physical address space."""
    for entry in cpuid:
        if entry.function == 0x80000008:
            bits = entry.eax & 0xFF
            guest_bits = entry.eax >> 16 & 0xFF
            return 1 << (min(bits, guest_bits) if guest_bits else bits)
    return 1 << PHYSICAL_BITS_UNKNOWN


def place(ram_end: int, size: int, limit: int) -> int:
    """Return the gpa of a window of `size` bytes above `ram_end`, aligned as well as possible. Raises ConfigError."""
    start = max(ram_end, HIGH_RAM.start)
    for alignment in ALIGNMENTS:
        gpa = -(-start // alignment) * alignment
        if gpa + size <= limit:
            return gpa
    raise ConfigError(
        f"{size >> 20} MiB of hot-add memory do not fit: this CPU addresses {limit >> 30} GiB in all; lower max"
    )


def usable_slots(wanted: int | None, kvm_slots: int) -> int:
    """Return the number of slots for the window. Raises ConfigError if `wanted` exceeds what KVM has."""
    left = (kvm_slots or 32) - HOT_ADD_SLOTS.start
    if wanted is not None and wanted > left:
        raise ConfigError(f"{wanted} memory slots: this KVM has {left} to spare; lower --slots")
    return max(1, min(wanted or DEFAULT_SLOTS, left))


@dataclass(slots=True)
class Slot:
    """A KVM slot in use: bytes of the window from `start` to `end`."""

    number: int
    start: int
    end: int


class HotAddWindow:
    """`devices.balloon.hot_add.Window` over KVM. On the loop's thread.

    At most `limit` bytes may be granted, of `backing.size` bytes of address space at `gpa`. `map(slot, region)` makes
    a KVM slot, `unmap(slot)` removes it. `quiet()` is a context in which no vCPU runs. `slots`: limit of KVM slots.
    """

    def __init__(
        self,
        memory: GuestMemory,
        backing: HostMemory,
        gpa: int,
        limit: int,
        *,
        slots: int | None = None,
        prealloc: bool = False,
        map: Callable[[int, Region], None],
        unmap: Callable[[int], None],
        quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.gpa, self.backing = gpa, backing
        self.start = gpa // PAGE_SIZE
        self.end = (gpa + backing.size) // PAGE_SIZE
        self.pages = limit // PAGE_SIZE
        self.slots = slots or DEFAULT_SLOTS
        self._memory = memory
        self._prealloc = prealloc
        self._map, self._unmap, self._quiet = map, unmap, quiet
        self._slots: list[Slot] = []  # by rising address
        self._regions: list[Region] = []  # the same with neighbours merged: the regions in GuestMemory

    @property
    def mapped(self) -> int:
        """Return the number of KVM slots in use."""
        return len(self._slots)

    @property
    def mapped_pages(self) -> int:
        """Return the number of pages mapped into the guest."""
        return sum(each.end - each.start for each in self._slots) // PAGE_SIZE

    def provide(self, start: int, pages: int) -> None:
        """Make these pages RAM; they lie above all mapped ones. Raises HostError, and then changes nothing."""
        low, high = self._offset(start), self._offset(start + pages)
        assert (self._slots[-1].end if self._slots else 0) <= low < high <= self.backing.size, (
            f"{pages} pages at {start:#x} are not above what is mapped of the window"
        )
        assert self.mapped_pages + pages <= self.pages, "more is given than the guest may have"
        if len(self._slots) == self.slots:
            self._merge()
        if self._prealloc:
            self._populate(low, high)
        self._map_slot(low, high)
        self._extend_memory(low, high)

    def keep_below(self, end: int) -> None:
        """Unmap everything from page `end` on, which the guest did not accept, and discard its contents."""
        limit = self._offset(end)
        if not self._slots or self._slots[-1].end <= limit:
            return
        top = self._slots[-1].end
        whole = [each for each in self._slots if each.start >= limit]
        for slot in reversed(whole):
            self._unmap_slot(slot)
        if self._slots and self._slots[-1].end > limit:
            with self._quiet():  # the guest keeps a part of the slot, which must not be seen unmapped
                slot = self._slots[-1]
                self._unmap_slot(slot)
                self._map_slot(slot.start, limit)
        self._cut_memory(limit)
        self.backing.discard(limit, top - limit)

    def withdraw(self) -> None:
        """Unmap all and discard the contents. The vCPUs must not run."""
        self.keep_below(self.start)

    def _offset(self, page: int) -> int:
        return (page - self.start) * PAGE_SIZE

    def _populate(self, low: int, high: int) -> None:
        unit = self.backing.page_size
        low = low // unit * unit
        self.backing.populate(low, min(-(-high // unit) * unit, self.backing.size) - low)

    # KVM's slots

    def _map_slot(self, low: int, high: int) -> None:
        number = next(n for n in count() if all(n != each.number for each in self._slots))
        if trace.map_slot.on:
            trace.map_slot(number, self.slots, low)
        self._map(HOT_ADD_SLOTS.start + number, self._region(low, high))
        self._slots.append(Slot(number, low, high))
        self._slots.sort(key=lambda each: each.start)

    def _unmap_slot(self, slot: Slot) -> None:
        if trace.unmap_slot.on:
            trace.unmap_slot(slot.number, self.slots, slot.start)
        self._unmap(HOT_ADD_SLOTS.start + slot.number)
        self._slots.remove(slot)

    def _merge(self) -> None:
        """Merge contiguous slots into one each. Raises HostError if that frees none."""
        if len(self._regions) == len(self._slots):
            raise HostError(f"all {self.slots} memory slots are in use; a machine reset frees them")
        with self._quiet():
            for region in self._regions:
                low, high = region.offset, region.offset + region.size
                parts = [each for each in self._slots if low <= each.start < high]
                if len(parts) > 1:
                    self._merge_slots(parts)

    def _merge_slots(self, parts: list[Slot]) -> None:
        for slot in parts:
            self._unmap_slot(slot)
        try:
            self._map_slot(parts[0].start, parts[-1].end)
        except HostError:
            for slot in parts:  # restore the old slots: the guest must not lose memory
                self._map_slot(slot.start, slot.end)
            raise

    # GuestMemory has regions instead of slots: contiguous slots are one region

    def _region(self, low: int, high: int) -> Region:
        return Region(self.gpa + low, high - low, self.backing, low)

    def _extend_memory(self, low: int, high: int) -> None:
        last = self._regions.pop() if self._regions and self._regions[-1].end == self.gpa + low else None
        region = self._region(low if last is None else last.offset, high)
        self._memory.replace(last, region)
        self._regions.append(region)

    def _cut_memory(self, limit: int) -> None:
        while self._regions and self._regions[-1].end > self.gpa + limit:
            last = self._regions.pop()
            region = self._region(last.offset, limit) if last.offset < limit else None
            self._memory.replace(last, region)
            if region is not None:
                self._regions.append(region)
