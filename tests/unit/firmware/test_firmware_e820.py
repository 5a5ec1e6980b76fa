"""The map of memory."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pyvmm.address_map import GIB, MIB
from pyvmm.firmware.e820 import E820Type, e820_map, ram_layout


@pytest.mark.parametrize("size", [2 * MIB, 512 * MIB, 3 * GIB, 3 * GIB + 4096, 1024 * GIB])
def test_map_is_sorted_free_of_overlaps_and_within_ram(size: int) -> None:
    entries = e820_map(size)
    for entry, after in pairwise(entries):
        assert entry.gpa + entry.size <= after.gpa
    for entry in entries:
        if entry.type == E820Type.RAM:
            assert any(r.gpa <= entry.gpa and entry.gpa + entry.size <= r.gpa + r.size for r in ram_layout(size))


@pytest.mark.parametrize("size", [2 * MIB, 3 * GIB, 5 * GIB])
def test_layout_holds_all_of_the_ram(size: int) -> None:
    assert sum(ram.size for ram in ram_layout(size)) == size


def test_ram_beyond_3_gib_continues_at_4_gib() -> None:
    assert ram_layout(5 * GIB) == [(0, 3 * GIB), (4 * GIB, 2 * GIB)]
    assert e820_map(5 * GIB)[-1] == (4 * GIB, 2 * GIB, E820Type.RAM)


def test_nothing_usable_between_639_kib_and_1_mib() -> None:
    for entry in e820_map(512 * MIB):
        if entry.type == E820Type.RAM:
            assert entry.gpa + entry.size <= 639 << 10 or entry.gpa >= MIB
