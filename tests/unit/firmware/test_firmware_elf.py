"""Reading a vmlinux."""

from __future__ import annotations

import random
import struct

import pytest

from pyvmm.errors import ConfigError
from pyvmm.firmware import elf
from tests.support import sample_kernels as kernels


def patched(offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(kernels.vmlinux())
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


def test_segments_and_entries_are_found() -> None:
    image = elf.parse(kernels.vmlinux())
    assert [(s.gpa, s.file_size, s.size) for s in image.segments] == [
        (0x1000000, 0x2000, 0x2000),
        (0x1200000, 0x1000, 0x3000),
    ]
    assert (image.entry64, image.pvh_entry, image.end) == (0x1000000, 0x1000040, 0x1203000)


def test_kernel_without_a_pvh_note_has_no_pvh_entry() -> None:
    assert elf.parse(kernels.vmlinux(pvh=False)).pvh_entry is None


def test_virtual_entry_point_becomes_physical() -> None:
    data = kernels.elf([(0x1000000, bytes(4096), 4096)], entry=0xFFFFFFFF81000010)
    assert elf.parse(data).entry64 == 0x1000010


def test_trimmed_zeros_are_no_longer_loaded_but_still_owned() -> None:
    data = bytearray(kernels.vmlinux())
    elf.trim_zeros(data)
    last = elf.parse(data).segments[-1]
    assert (last.file_size, last.size) == (4, 0x3000)


HOSTILE = {
    "32 bits": (patched(4, "<B", 1), "not for x86-64"),
    "ARM": (patched(18, "<H", 183), "not for x86-64"),
    "object file": (patched(56, "<H", 0), "0 program headers"),
    "many headers": (patched(56, "<H", 0xFFFF), "65535 program headers"),
    "odd header size": (patched(54, "<H", 32), "program headers"),
    "table past the end": (patched(32, "<Q", 1 << 63), "past the end"),
    "segment past the end": (patched(64 + 8, "<Q", 1 << 63), "truncated"),
    "file larger than memory": (patched(64 + 40, "<Q", 1), "damaged"),
    "huge segment": (patched(64 + 40, "<Q", 1 << 60), "damaged"),
    "entry outside": (patched(24, "<Q", 0x5000), "none of its segments"),
    "nothing to load": (kernels.elf([], entry=0, notes=b"note" * 4), "nothing to load"),
    "empty": (b"", "not an ELF"),
    "magic only": (b"\x7fELF", "not an ELF"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        elf.parse(data)


def test_truncated_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="truncated"):
        elf.parse(kernels.vmlinux()[:-10])


@pytest.mark.parametrize("notes", [b"\xff" * 64, kernels.note(b"Xen\0", 18, b"xyz"), b"\0" * 11])
def test_damaged_notes_are_no_pvh_entry(notes: bytes) -> None:
    data = kernels.elf([(0x1000000, bytes(4096), 4096)], entry=0x1000000, notes=notes)
    assert elf.parse(data).pvh_entry is None


def test_random_damage_raises_nothing_else() -> None:
    rng = random.Random(7)
    good = kernels.vmlinux()
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(64 + 3 * 56)] = rng.randrange(256)
        try:
            elf.parse(data)
        except ConfigError:
            pass
