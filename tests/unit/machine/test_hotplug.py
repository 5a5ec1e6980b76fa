"""The window for hot-added memory: where it lies, and what of it is RAM."""

from __future__ import annotations

import os

import pytest

from pyvmm.errors import ConfigError, GuestMemoryError, HostError
from pyvmm.kvm import CpuidEntry
from pyvmm.machine.hotplug import (
    BIG_BLOCK,
    BLOCK,
    DEFAULT_SLOTS,
    FIRST_SLOT,
    GIB,
    MIB,
    HotAddWindow,
    physical_limit,
    place,
    slot_size,
    window_size,
)
from pyvmm.memory import GuestMemory, HostMemory, Region

GPA = 32 * GIB


class Vm:
    """KVM's slots, as they are set."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}
        self.full = False

    def map(self, slot: int, region: Region) -> None:
        if self.full:
            raise HostError("no slot left")
        self.slots[slot] = region.gpa, region.size

    def unmap(self, slot: int) -> None:
        del self.slots[slot]


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(1 * MIB)


@pytest.fixture
def window(memory: GuestMemory, vm: Vm) -> HotAddWindow:
    """Three slots of a block each, the last of them half used."""
    return HotAddWindow(
        memory, HostMemory(3 * BLOCK), GPA, 3 * BLOCK - BLOCK // 2, slots=3, map=vm.map, unmap=vm.unmap
    )


def pages(size: int) -> int:
    return size >> 12


def test_a_slot_is_mapped_when_the_first_of_it_is_given(window: HotAddWindow, vm: Vm, memory: GuestMemory) -> None:
    assert (window.slots, window.mapped, memory.size) == (3, 0, MIB)
    window.provide(window.start, 1)
    assert vm.slots == {FIRST_SLOT: (GPA, BLOCK)}
    window.provide(window.start + pages(BLOCK) - 1, 2)
    assert sorted(vm.slots) == [FIRST_SLOT, FIRST_SLOT + 1]
    memory.write(GPA + BLOCK, b"ring")
    assert memory.read(GPA + BLOCK, 4) == b"ring"
    with pytest.raises(GuestMemoryError):
        memory.read(GPA + 2 * BLOCK, 1)


def test_a_reset_unmaps_all_and_forgets_what_was_in_it(window: HotAddWindow, vm: Vm, memory: GuestMemory) -> None:
    window.provide(window.start, 1)
    memory.write(GPA, b"secret")
    window.withdraw()
    assert (vm.slots, window.mapped, memory.size) == ({}, 0, MIB)
    window.provide(window.start, 1)
    assert memory.read(GPA, 6) == bytes(6)


def test_a_slot_that_kvm_refuses_is_no_ram(window: HotAddWindow, vm: Vm, memory: GuestMemory) -> None:
    vm.full = True
    with pytest.raises(HostError):
        window.provide(window.start, 1)
    assert (window.mapped, memory.size) == (0, MIB)


def test_preallocated_memory_is_there_before_the_guest(memory: GuestMemory, vm: Vm) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, BLOCK)
    window = HotAddWindow(memory, HostMemory(BLOCK, fd=fd), GPA, BLOCK, prealloc=True, map=vm.map, unmap=vm.unmap)
    assert os.fstat(fd).st_blocks == 0
    window.provide(window.start, 1)
    assert os.fstat(fd).st_blocks * 512 == BLOCK
    os.close(fd)


@pytest.mark.parametrize(
    ("extent", "slots", "size"),
    [(BLOCK, None, BLOCK), (3 * BLOCK, 2, 2 * BLOCK), (3 * BLOCK, 1, 3 * BLOCK), (GIB, None, BLOCK)],
)
def test_slots_are_whole_blocks(extent: int, slots: int | None, size: int) -> None:
    assert slot_size(extent, slots) == size


def test_large_windows_have_no_more_slots_than_the_default() -> None:
    assert -(-512 * GIB // slot_size(512 * GIB, None)) == DEFAULT_SLOTS


@pytest.mark.parametrize(
    ("boot", "size", "extent"),
    [(GIB, 1, BLOCK), (GIB, BLOCK + 1, 2 * BLOCK), (64 * GIB, 1, BIG_BLOCK), (64 * GIB, 3 * GIB, 2 * BIG_BLOCK)],
)
def test_address_space_comes_in_the_guest_s_blocks(boot: int, size: int, extent: int) -> None:
    assert window_size(boot, size) == extent


def test_address_space_comes_in_the_host_s_huge_pages() -> None:
    assert window_size(GIB, BLOCK, GIB) == GIB


@pytest.mark.parametrize(
    ("ram_end", "size", "bits", "gpa"),
    [
        (512 * MIB, GIB, 40, 32 * GIB),
        (40 * GIB, GIB, 40, 64 * GIB),
        (512 * MIB, 40 * GIB, 36, 4 * GIB),  # no room at 32 GiB
        (5 * GIB, GIB, 33, 6 * GIB),
        (5 * GIB + BLOCK, 2 * GIB + 6 * BLOCK, 33, 5 * GIB + BLOCK),
    ],
)
def test_the_window_lies_above_all_ram_aligned_as_well_as_may_be(
    ram_end: int, size: int, bits: int, gpa: int
) -> None:
    assert place(ram_end, size, 1 << bits) == gpa


def test_a_window_beyond_what_the_cpu_addresses_is_refused() -> None:
    with pytest.raises(ConfigError, match="64 GiB in all"):
        place(512 * MIB, 61 * GIB, 1 << 36)


@pytest.mark.parametrize(("eax", "bits"), [(40, 40), (0x3030, 48), (0x2A3030, 42)])
def test_the_limit_is_the_cpu_s(eax: int, bits: int) -> None:
    assert physical_limit([CpuidEntry(0x80000008, 0, 0, eax, 0, 0, 0)]) == 1 << bits


def test_a_cpu_that_does_not_say_addresses_64_gib() -> None:
    assert physical_limit([]) == 64 * GIB
