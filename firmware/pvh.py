"""The PVH boot protocol: a start info structure in place of the zero page, and a 32-bit entry point.

Source: Xen public/arch-x86/hvm/start_info.h; Linux arch/x86/platform/pvh/head.S.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from pyvmm.firmware.e820 import E820Entry

MAGIC = 0x336EC578
VERSION = 1
START_INFO = Struct("<IIIIQQQQII")
MODULE = Struct("<QQQQ")  # address, size, its command line, reserved
MEMORY = Struct("<QQII")  # address, size, E820 type, reserved


def build(
    gpa: int,
    *,
    e820: Sequence[E820Entry],
    cmdline_gpa: int,
    initrd_gpa: int = 0,
    initrd_size: int = 0,
    rsdp_gpa: int = 0,
) -> bytes:
    """Build struct hvm_start_info, the module list (the initramfs) and the memory map, to be written at `gpa`."""
    modules = [MODULE.pack(initrd_gpa, initrd_size, 0, 0)] if initrd_size else []
    modules_gpa = gpa + START_INFO.size
    memory_gpa = modules_gpa + MODULE.size * len(modules)
    memory = [MEMORY.pack(*entry, 0) for entry in e820]
    start_info = START_INFO.pack(
        MAGIC,
        VERSION,
        0,
        len(modules),
        modules_gpa if modules else 0,
        cmdline_gpa,
        rsdp_gpa,
        memory_gpa,
        len(memory),
        0,
    )
    return b"".join([start_info, *modules, *memory])
