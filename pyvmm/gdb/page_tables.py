"""The guest's page tables, walked for a debugger: virtual addresses to guest physical ones.

Source: Intel SDM volume 3, chapter 4.

    CR0.PG = 0                          linear addresses are physical
    CR4.PAE = 0                         32 bits: 2 levels of 1024 entries, 4 MiB pages with CR4.PSE
    CR4.PAE = 1, EFER.LMA = 0           PAE: 4 pointers, then 2 levels of 512 entries, 2 MiB pages
    EFER.LMA = 1, CR4.LA57 = 0 or 1     4 or 5 levels of 512 entries, 2 MiB and 1 GiB pages

Access rights are not looked at: the debugger may read and write all. Accessed bits stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from pyvmm.errors import GuestMemoryError

PAGE: Final = 4096
_PRESENT, _LARGE = 1 << 0, 1 << 7
_CR0_PG, _CR4_PSE, _CR4_PAE, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_USER_HALF: Final = 1 << 12
"""The bit of CR3 that tells a process's page table for user mode from the one for the kernel (Linux's page-table
isolation, PTI_USER_PGTABLE_BIT). The former lacks nearly all of the kernel."""


class Memory(Protocol):
    """The part of GuestMemory that is used here."""

    def read(self, gpa: int, length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Paging:
    """The registers of a vCPU that determine its translation."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    user: bool = False  # whether it is in user mode

    @property
    def long_mode(self) -> bool:
        """Whether the vCPU is in 64-bit mode, or in a program's 32-bit mode below it."""
        return bool(self.efer & _EFER_LMA)

    def before_kernel(self, boot_tables: int) -> bool:
        """Return whether the vCPU is not in the kernel's page tables yet: in none, or in the boot loader's."""
        return not self.cr0 & _CR0_PG or self.cr3 & _ADDRESS == boot_tables

    def translate(self, memory: Memory, address: int) -> int | None:
        """Return the guest physical address of a virtual one; None if it is not mapped.

        A vCPU in user mode under page-table isolation sees the kernel through the kernel's page table.
        """
        if not self.cr0 & _CR0_PG:
            return address & 0xFFFFFFFF
        try:
            found = self._walk(memory, address, self.cr3)
            if found is None and self.user and self.cr3 & _USER_HALF and self.efer & _EFER_LMA:
                found = self._walk(memory, address, self.cr3 & ~_USER_HALF)
        except GuestMemoryError:  # a table outside of RAM
            return None
        return found

    def _walk(self, memory: Memory, address: int, cr3: int) -> int | None:
        if self.efer & _EFER_LMA:
            levels = 5 if self.cr4 & _CR4_LA57 else 4
            top = 12 + 9 * levels
            if address >> top - 1 not in (0, (1 << 65 - top) - 1):
                return None  # not canonical
            return _walk_long(memory, address, cr3 & _ADDRESS, levels)
        if address >> 32:
            return None
        if self.cr4 & _CR4_PAE:
            pointer = _entry(memory, (cr3 & 0xFFFFFFE0) + 8 * (address >> 30))
            return _walk_long(memory, address, pointer & _ADDRESS, 2) if pointer & _PRESENT else None
        return self._walk_32(memory, address, cr3)

    def _walk_32(self, memory: Memory, address: int, cr3: int) -> int | None:
        entry = _entry(memory, (cr3 & 0xFFFFF000) + 4 * (address >> 22), 4)
        if not entry & _PRESENT:
            return None
        if entry & _LARGE and self.cr4 & _CR4_PSE:
            return (entry >> 13 & 0xFF) << 32 | entry & 0xFFC00000 | address & 0x3FFFFF
        entry = _entry(memory, (entry & 0xFFFFF000) + 4 * (address >> 12 & 0x3FF), 4)
        return entry & 0xFFFFF000 | address & 0xFFF if entry & _PRESENT else None


def _walk_long(memory: Memory, address: int, table: int, levels: int) -> int | None:
    """Walk `levels` tables of 512 entries."""
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        entry = _entry(memory, table + 8 * (address >> shift & 0x1FF))
        if not entry & _PRESENT:
            return None
        if level == 0 or (entry & _LARGE and level in (1, 2)):
            offset = (1 << shift) - 1
            return entry & _ADDRESS & ~offset | address & offset
        table = entry & _ADDRESS
    raise AssertionError("level 0 returns")


def _entry(memory: Memory, gpa: int, size: int = 8) -> int:
    return int.from_bytes(memory.read(gpa, size), "little")
