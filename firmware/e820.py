"""The e820 map of physical memory: the ranges of RAM, and which of them the guest may use.

Source: Linux arch/x86/include/uapi/asm/setup_data.h (struct boot_e820_entry), ACPI 6.5 chapter 15.

    0        640K          1M                3G            4G
    |  RAM   | hole, ACPI  |  RAM ...        |  devices     |  RAM, the rest ...

The devices' hole is fixed at 3-4 GiB: IOAPIC, local APICs and the VMBus window live there, so RAM beyond 3 GiB
continues at 4 GiB.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from pyvmm.address_map import ACPI_TABLES, EBDA, EXTENDED_RAM, HIGH_RAM, HOLE, LOW_RAM


class E820Type(IntEnum):
    """E820_TYPE_*: the type of a range of physical memory.

    Source: ACPI 6.5, chapter 15; Linux arch/x86/include/asm/e820/types.h.
    """

    RAM = 1
    RESERVED = 2
    ACPI = 3  # tables; a guest may reclaim it once it has read them
    NVS = 4


class RamRange(NamedTuple):
    """A range of RAM in the guest's address space."""

    gpa: int
    size: int


class E820Entry(NamedTuple):
    """struct boot_e820_entry: one line of the memory map."""

    gpa: int
    size: int
    type: int


def ram_layout(ram_size: int) -> list[RamRange]:
    """Return the ranges of `ram_size` bytes of RAM: one, or two around the hole below 4 GiB."""
    if ram_size <= HOLE.start:
        return [RamRange(0, ram_size)]
    return [RamRange(0, HOLE.start), RamRange(HIGH_RAM.start, ram_size - HOLE.start)]


def e820_map(ram_size: int) -> list[E820Entry]:
    """Return the map that a BIOS would report for `ram_size` bytes of RAM, sorted and free of overlaps."""
    entries = [
        E820Entry(LOW_RAM.start, min(ram_size, LOW_RAM.size), E820Type.RAM),
        E820Entry(EBDA.start, EBDA.size, E820Type.RESERVED),
        E820Entry(ACPI_TABLES.start, ACPI_TABLES.size, E820Type.RESERVED),
    ]
    low, *rest = ram_layout(ram_size)
    if low.size > EXTENDED_RAM.start:
        entries.append(E820Entry(EXTENDED_RAM.start, low.size - EXTENDED_RAM.start, E820Type.RAM))
    entries += [E820Entry(ram.gpa, ram.size, E820Type.RAM) for ram in rest]
    return entries
