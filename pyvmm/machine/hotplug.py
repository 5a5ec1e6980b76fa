"""The window for hot-added memory: address space above everything else, mapped into the guest slot by slot.

    4 GiB / end of boot RAM      gpa                                                    gpa + extent
      |                           |  slot 0  |  slot 1  |  slot 2  |  ...                |
      |                           |  mapped  |  mapped  |     nothing: no RAM yet        |

The address space costs nothing before its first use (MAP_NORESERVE), but for huge pages, which the host reserves.
A slot becomes a KVM memory slot and part of GuestMemory when the first of it is given to the guest, and is neither
any more after a machine reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyvmm.errors import ConfigError, HostError
from pyvmm.kvm import CpuidEntry
from pyvmm.machine import events as trace
from pyvmm.memory import PAGE_SIZE, GuestMemory, HostMemory, Region

MIB = 1 << 20
GIB = 1 << 30
BLOCK = 128 * MIB
"""What Linux adds at least, and what a slot is a multiple of."""
BIG_BLOCK = 2 * GIB
BIG_GUEST = 64 * GIB
"""Boot RAM from which on Linux adds memory in larger blocks."""
ALIGNMENTS = (32 * GIB, BIG_BLOCK, BLOCK)
"""The first is the largest that a guest can ask for by its capabilities message."""
DEFAULT_SLOTS = 64
FIRST_SLOT = 16
"""KVM's slots below are the boot RAM's and hardware.FIRST_READONLY_SLOT's."""
PHYSICAL_BITS_UNKNOWN = 36


def block_size(boot_ram: int) -> int:
    """The largest block that a Linux with so much boot RAM may add at a time."""
    return BIG_BLOCK if boot_ram >= BIG_GUEST else BLOCK


def window_size(boot_ram: int, size: int, page_size: int = PAGE_SIZE) -> int:
    """Bytes of address space for `size` bytes of hot-added memory: whole blocks of guest and host."""
    unit = max(block_size(boot_ram), page_size)
    return -(-size // unit) * unit


def physical_limit(cpuid: Iterable[CpuidEntry]) -> int:
    """The end of what the guest's CPU can address."""
    for entry in cpuid:
        if entry.function == 0x80000008:
            bits = entry.eax & 0xFF
            guest_bits = entry.eax >> 16 & 0xFF
            return 1 << (min(bits, guest_bits) if guest_bits else bits)
    return 1 << PHYSICAL_BITS_UNKNOWN


def place(ram_end: int, size: int, limit: int) -> int:
    """Where a window of `size` bytes goes above `ram_end`, aligned as well as may be. Raises ConfigError."""
    start = max(ram_end, 4 * GIB)
    for alignment in ALIGNMENTS:
        gpa = -(-start // alignment) * alignment
        if gpa + size <= limit:
            return gpa
    raise ConfigError(
        f"{size >> 20} MiB of memory to grow by do not fit: this CPU addresses {limit >> 30} GiB in all; lower max"
    )


class HotAddWindow:
    """`devices.balloon.hot_add.Window` over KVM. On the loop's thread.

    `limit` bytes may be given, of `backing.size` bytes of address space at `gpa`. `map(slot, region)` makes a KVM
    slot, `unmap(slot)` ends it.
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
    ) -> None:
        self.gpa, self.backing = gpa, backing
        self.start = gpa // PAGE_SIZE
        self.end = (gpa + backing.size) // PAGE_SIZE
        self.pages = limit // PAGE_SIZE
        self.slot_size = slot_size(backing.size, slots, backing.page_size)
        self.slots = -(-backing.size // self.slot_size)
        self._memory = memory
        self._prealloc = prealloc
        self._map, self._unmap = map, unmap
        self._mapped: dict[int, Region] = {}

    @property
    def mapped(self) -> int:
        """Slots the guest has."""
        return len(self._mapped)

    def provide(self, start: int, pages: int) -> None:
        """Make these pages RAM. Raises HostError; what was mapped on the way stays."""
        first = (start - self.start) * PAGE_SIZE // self.slot_size
        last = ((start + pages - self.start) * PAGE_SIZE - 1) // self.slot_size
        assert 0 <= first <= last < self.slots, f"{pages} pages at {start:#x} are outside the window"
        for index in range(first, last + 1):
            if index not in self._mapped:
                self._provide_slot(index)

    def _provide_slot(self, index: int) -> None:
        offset = index * self.slot_size
        size = min(self.slot_size, self.backing.size - offset)
        if self._prealloc:
            self.backing.populate(offset, size)
        region = Region(self.gpa + offset, size, self.backing, offset)
        if trace.map_slot.on:
            trace.map_slot(index, self.slots, offset)
        self._memory.add(region)
        try:
            self._map(FIRST_SLOT + index, region)
        except HostError:
            self._memory.remove(region)
            raise
        self._mapped[index] = region

    def withdraw(self) -> None:
        """Unmap all and throw the contents away. The vCPUs must not run."""
        for index, region in self._mapped.items():
            if trace.unmap_slot.on:
                trace.unmap_slot(index, self.slots, region.offset)
            self._unmap(FIRST_SLOT + index)
            self._memory.remove(region)
            self.backing.discard(region.offset, region.size)
        self._mapped.clear()


def slot_size(extent: int, slots: int | None, page_size: int = PAGE_SIZE) -> int:
    """Bytes a slot: as few as give no more than `slots`, in whole blocks."""
    unit = max(BLOCK, page_size)
    return -(-extent // (unit * (slots or DEFAULT_SLOTS))) * unit
