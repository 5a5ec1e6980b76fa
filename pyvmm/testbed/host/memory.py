"""The guest's memory as the raw host sees it: bytes, discards, and KVM's memory slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.address_map import HOT_ADD_SLOTS
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.memory import PAGE_SIZE, HostMemory, Region

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host

PageRanges = list[tuple[int, int]]


class RawMemory:
    """Memory of a guest. Addresses and sizes are in bytes and whole pages, but for `read` and `write`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._mapped: dict[int, tuple[int, Region]] = {}  # by gpa: KVM's slot, region

    def read(self, gpa: int, size: int) -> bytes:
        """Return bytes of guest RAM. Raises GuestMemoryError where there is none."""
        return self._host.parts.memory.read(gpa, size)

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes in guest RAM. Raises GuestMemoryError where there is none."""
        self._host.parts.memory.write(gpa, data)

    def discard(self, gpa: int, size: int) -> int:
        """Take pages from the guest, whoever uses them: they read as zeros. Returns the bytes discarded."""
        _check(gpa, size)
        return self._host.parts.memory.discard(gpa, size)

    def map(self, gpa: int, size: int) -> None:
        """Make fresh RAM appear at an address that has none. Raises ValueError, HostError."""
        _check(gpa, size)
        machine = self._machine()
        memory = machine.memory
        if any(memory.pieces(gpa, size)):
            raise ValueError(f"{size:#x} bytes at {gpa:#x}: there is RAM already")
        used = {slot for slot, _ in self._mapped.values()}
        first = HOT_ADD_SLOTS.start + HOT_ADD_SLOTS.size - 1  # from the end: the window uses them from the start
        slot = next(number for number in range(first, HOT_ADD_SLOTS.start, -1) if number not in used)
        region = Region(gpa, size, HostMemory(size))
        machine.slot.map_memory(slot, region)
        memory.add(region)
        self._mapped[gpa] = slot, region

    def unmap(self, gpa: int) -> None:
        """Remove what `map` made at `gpa`, with its contents. Raises ValueError if it made nothing there."""
        if gpa not in self._mapped:
            raise ValueError(f"nothing was mapped at {gpa:#x} by this test")
        slot, region = self._mapped.pop(gpa)
        machine = self._machine()
        with machine.slot.stopped_vcpus():
            machine.slot.unmap_memory(slot)
            machine.memory.remove(region)

    def hot_add_range(self, size: int, *, mapped: bool = True) -> tuple[int, int]:
        """Return (first frame, pages) of `size` bytes of the hot-add window, RAM from now on if `mapped`.

        The balloon device knows nothing of it. Ranges follow one another, each at a block of 128 MiB.
        Raises ValueError for a guest that cannot grow (give `vm` a `hot_add` size).
        """
        _check(0, size)
        window = self._window()
        start = max([window.start, *(gpa + region.size >> 12 for gpa, (_, region) in self._mapped.items())])
        start = -(-start // BLOCK_PAGES) * BLOCK_PAGES
        pages = size // PAGE_SIZE
        if start + pages > window.end:
            raise ValueError(f"{pages} pages at frame {start:#x}: the hot-add window ends at {window.end:#x}")
        if mapped:
            self.map(start * PAGE_SIZE, size)
        return start, pages

    def _window(self) -> HotAddWindow:
        window = self._machine().window
        if window is None:
            raise ValueError("the guest cannot grow: start it with a hot_add size")
        return window

    def _machine(self) -> Machine:
        machine = self._host.parts.machine
        if machine is None:
            raise ValueError("memory slots need a real machine")
        return machine


BLOCK_PAGES = 128 << 8
"""Pages of the smallest block that Linux adds."""

if TYPE_CHECKING:
    from pyvmm.machine import Machine


def _check(gpa: int, size: int) -> None:
    if gpa < 0 or size <= 0 or gpa % PAGE_SIZE or size % PAGE_SIZE:
        raise ValueError(f"{size:#x} bytes at {gpa:#x}: not whole pages")
