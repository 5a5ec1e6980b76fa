"""Pages of boot RAM that are left out of KVM's memory slots: the guest's access to one is an exit, read or write.

    boot RAM     |  guest's  |   withheld   | guest's |
    KVM's slots  |   slot 0  |              | slot N  |      N: counted from KVM's last slot down

For a test bed that watches pages which a guest has given away. This process still reads and writes them. KVM makes
the exit by emulating the instruction: where it cannot (a fetch, a page table), the vCPU fails or the guest faults.

A slot cannot be changed, only deleted and made, and a deletion empties KVM's page tables of the guest: it takes each
page's fault anew. So pieces that stay as they are keep their slots.
"""

from __future__ import annotations

from typing import Final

from pyvmm.devices.balloon.ranges import PageRange, PageRanges
from pyvmm.kvm import Cap, Kvm
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import PAGE_SIZE

RANGES_LIMIT: Final = 512
"""Most ranges that are withheld; each takes a slot more. The smallest of a guest's ranges stay mapped."""

RESERVED_SLOTS: Final = 160
"""Slots that are left to boot RAM, watched pages and hot-added memory."""


Piece = tuple[int, int]
"""A part of RAM that is mapped: its first page, and the one after its last."""


class WithheldPages:
    """The withheld pages of one life of a machine's hardware. The vCPUs must not run during `apply`."""

    def __init__(self, hardware: Hardware, kvm: Kvm) -> None:
        self.hardware = hardware
        self.pages = PageRanges()
        """What is withheld now."""
        last = kvm.check(Cap.NR_MEMSLOTS) or 32
        self._numbers = range(last - 1, 0, -1)
        self.limit = max(0, min(RANGES_LIMIT, last - RESERVED_SLOTS))
        self._slots: dict[Piece, int] = {}
        for slot, region in hardware.boot_ram.items():
            self._slots[region.gpa // PAGE_SIZE, region.end // PAGE_SIZE] = slot

    def apply(self, pages: PageRanges) -> None:
        """Withhold these pages of boot RAM, and no others; of more than `limit` ranges the largest.

        Raises HostError.
        """
        regions = list(self.hardware.boot_ram.values())
        ram = [PageRange(region.gpa // PAGE_SIZE, region.size // PAGE_SIZE) for region in regions]
        ranges = list(pages & PageRanges(ram))
        withheld = PageRanges(sorted(ranges, key=lambda each: each.pages)[-self.limit :] if self.limit else ())
        wanted = {
            piece: region for region, whole in zip(regions, ram, strict=True) for piece in _rest(whole, withheld)
        }
        vm = self.hardware.vm
        for piece in [each for each in self._slots if each not in wanted]:
            vm.set_memory(self._slots.pop(piece), 0, 0, 0)
        for start, end in sorted(wanted.keys() - self._slots.keys()):
            region = wanted[start, end]
            number = next(each for each in self._numbers if each not in vm.slots)
            offset = start * PAGE_SIZE - region.gpa
            vm.set_memory(number, start * PAGE_SIZE, (end - start) * PAGE_SIZE, region.address + offset)
            self._slots[start, end] = number
        self.pages = withheld


def _rest(whole: PageRange, withheld: PageRanges) -> list[Piece]:
    """Return the parts of `whole` that stay mapped."""
    at = whole.start
    found = []
    for start, pages in withheld & PageRanges([whole]):
        if at < start:
            found.append((at, start))
        at = start + pages
    if at < whole.end:
        found.append((at, whole.end))
    return found
