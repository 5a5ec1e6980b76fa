"""The walk through the guest's page tables, in each of the CPU's modes."""

from __future__ import annotations

from struct import pack

import pytest

from pyvmm.gdb.page_tables import Paging
from pyvmm.memory import GuestMemory

PG, PSE, PAE, LA57, LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
TABLE, LARGE = 3, 0x83
KERNEL = 0xFFFFFFFF81234567


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(1 << 20)


def put(memory: GuestMemory, *entries: tuple[int, int]) -> None:
    for gpa, value in entries:
        memory.write(gpa, pack("<Q", value))


def index(address: int, level: int) -> int:
    return 8 * (address >> 12 + 9 * level & 0x1FF)


def test_without_paging_addresses_are_physical(memory: GuestMemory) -> None:
    assert Paging(0, 0, 0, 0).translate(memory, 0x123456) == 0x123456


def test_four_levels_with_small_large_and_giant_pages(memory: GuestMemory) -> None:
    put(
        memory,
        (0x1000 + index(KERNEL, 3), 0x2000 | TABLE),
        (0x2000 + index(KERNEL, 2), 0x3000 | TABLE),
        (0x3000 + index(KERNEL, 1), 0x4000 | TABLE),
        (0x4000 + index(KERNEL, 0), 0x80000000_00055000 | TABLE),  # no-execute
    )
    paging = Paging(PG, 0x1000 | 0x18, PAE, LMA)
    assert paging.translate(memory, KERNEL) == 0x55567
    assert paging.translate(memory, KERNEL + 0x1000) is None
    assert paging.translate(memory, 0x0000_8000_0000_0000) is None, "not canonical"
    put(memory, (0x3000 + index(KERNEL, 1), 0x600000 | LARGE))
    assert paging.translate(memory, KERNEL) == 0x600000 + (KERNEL & 0x1FFFFF)
    put(memory, (0x2000 + index(KERNEL, 2), 0x40000000 | LARGE))
    assert paging.translate(memory, KERNEL) == 0x40000000 + (KERNEL & 0x3FFFFFFF)


def test_five_levels(memory: GuestMemory) -> None:
    address = 0xFF12_3456_789A_BCDE
    tables = [(0x1000 * (n + 1) + index(address, 4 - n), 0x1000 * (n + 2) | TABLE) for n in range(4)]
    put(memory, *tables, (0x5000 + index(address, 0), 0x77000 | TABLE))
    assert Paging(PG, 0x1000, PAE | LA57, LMA).translate(memory, address) == 0x77CDE
    assert Paging(PG, 0x1000, PAE | LA57, LMA).translate(memory, 0x0100_0000_0000_0000) is None
    assert Paging(PG, 0x2000, PAE, LMA).translate(memory, address) is None, "not canonical in four levels"


def test_pae_and_32_bit_tables(memory: GuestMemory) -> None:
    address = 0xC0_123_456
    put(memory, (0x1020 + 8 * 3, 0x2001), (0x2000 + index(address, 1), 0x3001), (0x3000 + index(address, 0), 0x9001))
    assert Paging(PG, 0x1020, PAE, 0).translate(memory, address) == 0x9456
    assert Paging(PG, 0x1020, PAE, 0).translate(memory, 0x1_0000_0000) is None
    memory.write(0x5000 + 4 * (address >> 22), pack("<I", 0x6001))
    memory.write(0x6000 + 4 * (address >> 12 & 0x3FF), pack("<I", 0xA001))
    assert Paging(PG, 0x5000, 0, 0).translate(memory, address) == 0xA456
    memory.write(0x5000 + 4 * (address >> 22), pack("<I", 0x00C0_0081))
    assert Paging(PG, 0x5000, PSE, 0).translate(memory, address) == 0xC00000 | address & 0x3FFFFF


def test_a_vcpu_in_user_mode_sees_the_kernel_by_its_own_page_table(memory: GuestMemory) -> None:
    put(memory, (0x2000 + index(KERNEL, 3), 0x4000 | TABLE), (0x4000 + index(KERNEL, 2), 0x40000000 | LARGE))
    assert Paging(PG, 0x3000, PAE, LMA).translate(memory, KERNEL) is None
    assert Paging(PG, 0x3000, PAE, LMA, user=True).translate(memory, KERNEL) == 0x40000000 + (KERNEL & 0x3FFFFFFF)


@pytest.mark.parametrize("cr3", [0x7FFFF000, 0xFFFFF, (1 << 52) - 4096])
@pytest.mark.parametrize("cr4", [0, PAE, PAE | LA57])
@pytest.mark.parametrize("efer", [0, LMA])
def test_tables_outside_of_ram_map_nothing(memory: GuestMemory, cr3: int, cr4: int, efer: int) -> None:
    assert Paging(PG, cr3, cr4, efer).translate(memory, KERNEL & 0xFFFFFFFF) is None


def test_tables_that_point_at_themselves_end(memory: GuestMemory) -> None:
    put(memory, *((0x1000 + 8 * n, 0x1000 | TABLE) for n in range(512)))
    assert Paging(PG, 0x1000, PAE | LA57, LMA).translate(memory, KERNEL) == 0x1567
