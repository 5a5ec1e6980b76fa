"""Pages of RAM that are left out of KVM's memory slots: the guest's access to one is an exit, read or write.

    boot RAM, or a  |  guest's  |   withheld   | guest's |
    piece of hot-   |   slot 0  |              | slot N  |      N: counted from KVM's last slot down
    added memory

For a test bed that watches pages which a guest has given away. This process still reads and writes them. KVM makes
the exit by emulating the instruction: where it cannot (a fetch, a page table), the vCPU fails or the guest faults.

A slot cannot be changed, only deleted and made, and a deletion empties KVM's page tables of the guest: it takes each
page's fault anew. So pieces that stay as they are keep their slots.

Hot-added memory comes, is merged and goes while pages are withheld: Hardware then leaves its slots to `map` and
`unmap`.
"""

from __future__ import annotations

from typing import Final

from pyvmm.devices.balloon.ranges import PageRange, PageRanges
from pyvmm.kvm import Cap, Kvm
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import PAGE_SIZE, Region

RANGES_LIMIT: Final = 512
"""Most ranges that are withheld; each takes a slot more. The smallest of a guest's ranges stay mapped."""

RESERVED_SLOTS: Final = 160
"""Slots that are left to boot RAM, watched pages and hot-added memory."""


Piece = tuple[int, int]
"""A part of RAM that is mapped: its first page, and the one after its last."""


class WithheldPages:
    """The withheld pages of one life of a machine's hardware. The vCPUs must not run during `apply` and `end`."""

    def __init__(self, hardware: Hardware, kvm: Kvm) -> None:
        self.hardware = hardware
        self.pages = PageRanges()
        """What is withheld now."""
        self._asked = PageRanges()  # in the last `apply`, as far as `limit` let it
        last = kvm.check(Cap.NR_MEMSLOTS) or 32
        self._numbers = range(last - 1, 0, -1)
        self.limit = max(0, min(RANGES_LIMIT, last - RESERVED_SLOTS))
        self._pieces: dict[int, dict[Piece, int]] = {
            slot: {_whole(region): slot} for slot, region in hardware.ram.items()
        }  # by the slot that the memory has while nothing is withheld: KVM's slot of each piece
        hardware.mapper = self

    def apply(self, pages: PageRanges) -> None:
        """Withhold these pages, as far as they are RAM, and no others; of more than `limit` ranges the largest.

        Raises HostError.
        """
        self._asked = pages.copy()
        regions = self.hardware.ram
        ram = PageRanges((start, end - start) for start, end in map(_whole, regions.values()))
        self._withhold(_largest(pages & ram, self.limit))

    def end(self) -> None:
        """Give the guest back what is withheld, and memory its usual slots. Raises HostError."""
        for slot, pieces in self._pieces.items():
            for piece in [each for each, number in pieces.items() if number != slot]:
                self.hardware.vm.set_memory(pieces.pop(piece), 0, 0, 0)
        self.apply(PageRanges())
        self.hardware.mapper = None

    def _withhold(self, pages: PageRanges) -> None:
        vm, regions = self.hardware.vm, self.hardware.ram
        wanted = {slot: _rest(_whole(region), pages) for slot, region in regions.items()}
        for slot, pieces in self._pieces.items():
            for piece in pieces.keys() - set(wanted[slot]):
                vm.set_memory(pieces.pop(piece), 0, 0, 0)
        for slot, region in regions.items():
            self._fill(slot, region, wanted[slot])
        self.pages = pages

    def _fill(self, slot: int, region: Region, wanted: list[Piece]) -> None:
        vm, pieces = self.hardware.vm, self._pieces[slot]
        for piece in sorted(set(wanted) - pieces.keys()):
            start, end = piece
            number = slot
            if piece != _whole(region) or slot in vm.slots:
                number = next(each for each in self._numbers if each not in vm.slots and each not in self._pieces)
            offset = start * PAGE_SIZE - region.gpa
            vm.set_memory(number, start * PAGE_SIZE, (end - start) * PAGE_SIZE, region.address + offset)
            pieces[piece] = number

    # For Hardware

    def map(self, slot: int, region: Region) -> None:
        """Map hot-added memory but for what is to be withheld of it. The guest does not see other memory change.

        Raises HostError.
        """
        start, end = _whole(region)
        room = self.limit - len(list(self.pages))
        withheld = _largest(self._asked & PageRanges([(start, end - start)]), room)
        self._pieces[slot] = {}
        try:
            self._fill(slot, region, _rest((start, end), withheld))
        except BaseException:
            self.unmap(slot)
            raise
        self.pages.update(withheld)

    def unmap(self, slot: int) -> None:
        """Remove what is mapped of hot-added memory. Raises HostError."""
        for number in self._pieces.pop(slot).values():
            self.hardware.vm.set_memory(number, 0, 0, 0)
        region = self.hardware.ram.get(slot)
        if region is not None:
            start, end = _whole(region)
            self.pages.subtract(PageRanges([(start, end - start)]))


def _whole(region: Region) -> Piece:
    return region.gpa // PAGE_SIZE, region.end // PAGE_SIZE


def _largest(pages: PageRanges, limit: int) -> PageRanges:
    """Return the `limit` largest ranges."""
    return PageRanges(sorted(pages, key=lambda each: each.pages)[-limit:] if limit > 0 else ())


def _rest(whole: Piece, withheld: PageRanges) -> list[Piece]:
    """Return the parts of `whole` that stay mapped."""
    at, whole_end = whole
    found = []
    for start, pages in withheld & PageRanges([PageRange(at, whole_end - at)]):
        if at < start:
            found.append((at, start))
        at = start + pages
    if at < whole_end:
        found.append((at, whole_end))
    return found
