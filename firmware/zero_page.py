"""The zero page (struct boot_params): the boot parameters of Linux, in one page that RSI points to at the entry.

Source: Linux arch/x86/include/uapi/asm/bootparam.h (struct boot_params), Documentation/arch/x86/zero-page.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack_into

from pyvmm.firmware.bzimage import HEADER_LIMIT, HEADER_MAGIC, HEADER_START
from pyvmm.firmware.e820 import E820Entry

SIZE = 4096
ACPI_RSDP_ADDR = 0x070
EXT_RAMDISK_IMAGE = 0x0C0
EXT_RAMDISK_SIZE = 0x0C4
EXT_CMD_LINE_PTR = 0x0C8
E820_ENTRIES = 0x1E8
BOOT_FLAG = 0x1FE
HEADER = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
CMDLINE_SIZE = 0x238
E820_TABLE = 0x2D0
E820_ENTRY_SIZE = 20
MAX_E820_ENTRIES = 128

LOADER_UNKNOWN = 0xFF  # no number is assigned to us
LOADED_HIGH = 1 << 0
PROTOCOL = 0x20F  # for a vmlinux, which has no header of its own


def build(
    *,
    header: bytes | None,
    e820: Sequence[E820Entry],
    cmdline_gpa: int,
    cmdline_size: int,
    initrd_gpa: int = 0,
    initrd_size: int = 0,
    rsdp_gpa: int = 0,
) -> bytes:
    """Build the page's 4096 bytes. `header` is the bzImage's own setup header, None for a vmlinux.

    Addresses may lie above 4 GiB: their upper halves go to the ext_ fields.
    """
    page = bytearray(SIZE)
    if header is not None:
        page[HEADER_START : HEADER_START + len(header)] = header[: HEADER_LIMIT - HEADER_START]
        page[LOADFLAGS] |= LOADED_HIGH
    else:
        pack_into("<H", page, BOOT_FLAG, 0xAA55)
        page[HEADER : HEADER + 4] = HEADER_MAGIC
        pack_into("<H", page, VERSION, PROTOCOL)
        page[LOADFLAGS] = LOADED_HIGH
        pack_into("<I", page, INITRD_ADDR_MAX, 0x7FFFFFFF)
        pack_into("<I", page, KERNEL_ALIGNMENT, 0x200000)
        pack_into("<I", page, CMDLINE_SIZE, cmdline_size)
    page[TYPE_OF_LOADER] = LOADER_UNKNOWN
    pack_into("<I", page, CMD_LINE_PTR, cmdline_gpa & 0xFFFFFFFF)
    pack_into("<I", page, EXT_CMD_LINE_PTR, cmdline_gpa >> 32)
    pack_into("<II", page, RAMDISK_IMAGE, initrd_gpa & 0xFFFFFFFF, initrd_size & 0xFFFFFFFF)
    pack_into("<II", page, EXT_RAMDISK_IMAGE, initrd_gpa >> 32, initrd_size >> 32)
    pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp_gpa)
    if len(e820) > MAX_E820_ENTRIES:
        raise AssertionError(f"{len(e820)} lines in the memory map, {MAX_E820_ENTRIES} fit")
    page[E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        pack_into("<QQI", page, E820_TABLE + index * E820_ENTRY_SIZE, *entry)
    return bytes(page)
