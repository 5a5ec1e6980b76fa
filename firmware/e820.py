"""The map of physical memory: where RAM is, and what the guest is told of it.

Source: Linux arch/x86/include/uapi/asm/setup_data.h (struct boot_e820_entry), ACPI 6.5 chapter 15.

    0        640K          1M                3G            4G
    |  RAM   | hole, ACPI  |  RAM ...        |  devices     |  RAM, the rest ...

The devices' hole is fixed at 3-4 GiB: IOAPIC, local APICs and the VMBus window live there, so RAM beyond 3 GiB
continues at 4 GiB.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

LOW_RAM_END = 0x9FC00  # 639 KiB; the last one below 640 KiB is where a BIOS keeps its extended data
EBDA_END = 0xA0000
ACPI_AREA = 0xE0000  # where the RSDP is looked for by a guest that is not told its address
ACPI_AREA_SIZE = 0x20000
HIGH_RAM = 1 * MIB
HOLE = 3 * GIB
HOLE_END = 4 * GIB


class E820Type(IntEnum):
    """What a range of physical memory may be used for."""

    RAM = 1
    RESERVED = 2
    ACPI = 3  # tables; a guest may reclaim it once it has read them
    NVS = 4


class RamRange(NamedTuple):
    """A piece of RAM in the guest's address space."""

    gpa: int
    size: int


class E820Entry(NamedTuple):
    """struct boot_e820_entry: one line of the memory map."""

    gpa: int
    size: int
    type: int


def ram_layout(ram_size: int) -> list[RamRange]:
    """Where `ram_size` bytes of RAM are found: one range, or two around the hole below 4 GiB."""
    if ram_size <= HOLE:
        return [RamRange(0, ram_size)]
    return [RamRange(0, HOLE), RamRange(HOLE_END, ram_size - HOLE)]


def e820_map(ram_size: int) -> list[E820Entry]:
    """The map a BIOS would report for `ram_size` bytes of RAM, sorted and free of overlaps."""
    entries = [
        E820Entry(0, min(ram_size, LOW_RAM_END), E820Type.RAM),
        E820Entry(LOW_RAM_END, EBDA_END - LOW_RAM_END, E820Type.RESERVED),
        E820Entry(ACPI_AREA, ACPI_AREA_SIZE, E820Type.RESERVED),
    ]
    low, *rest = ram_layout(ram_size)
    if low.size > HIGH_RAM:
        entries.append(E820Entry(HIGH_RAM, low.size - HIGH_RAM, E820Type.RAM))
    entries += [E820Entry(ram.gpa, ram.size, E820Type.RAM) for ram in rest]
    return entries
