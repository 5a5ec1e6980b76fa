"""The window for hot-added memory: where it lies, and what of it is RAM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.address_map import GIB, HOT_ADD_SLOTS, MIB
from pyvmm.errors import ConfigError, GuestMemoryError, HostError
from pyvmm.kvm import CpuidEntry
from pyvmm.machine.hotplug import (
    BIG_BLOCK,
    BLOCK,
    DEFAULT_SLOTS,
    HotAddWindow,
    physical_limit,
    place,
    usable_slots,
    window_size,
)
from pyvmm.memory import GuestMemory, HostMemory, Region

GPA = 32 * GIB


class Vm:
    """KVM's slots, as they are set. Objects to what KVM refuses, and to a slot ended while the guest may use it."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}
        self.full = False
        self.quiets = 0

    def map(self, slot: int, region: Region) -> None:
        if self.full:
            raise HostError("no slot left")
        assert slot not in self.slots, "a slot cannot be resized"
        for gpa, size in self.slots.values():
            assert region.end <= gpa or gpa + size <= region.gpa, "slots overlap"
        self.slots[slot] = region.gpa, region.size

    def unmap(self, slot: int) -> None:
        del self.slots[slot]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        before = self.extents()
        self.quiets += 1
        yield
        assert self.extents()[: len(before) - 1] == before[:-1], "the guest lost memory"

    def extents(self) -> list[tuple[int, int]]:
        """What is RAM: (offset in the window, bytes), neighbours merged."""
        found: list[tuple[int, int]] = []
        for gpa, size in sorted(self.slots.values()):
            if found and sum(found[-1]) == gpa - GPA:
                found[-1] = found[-1][0], found[-1][1] + size
            else:
                found.append((gpa - GPA, size))
        return found


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(1 * MIB)


def make(memory: GuestMemory, vm: Vm, **options: object) -> HotAddWindow:
    """Three blocks of address space, of which two and a half may be given."""
    return HotAddWindow(
        memory,
        HostMemory(3 * BLOCK),
        GPA,
        3 * BLOCK - BLOCK // 2,
        map=vm.map,
        unmap=vm.unmap,
        quiet=vm.quiet,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def window(memory: GuestMemory, vm: Vm) -> HotAddWindow:
    return make(memory, vm, slots=3)


def pages(size: int) -> int:
    return size >> 12


def test_what_is_given_is_ram_to_the_page_and_nothing_else_is(
    window: HotAddWindow, vm: Vm, memory: GuestMemory
) -> None:
    assert (window.mapped, memory.size) == (0, MIB)
    window.provide(window.start, 1)
    assert vm.slots == {HOT_ADD_SLOTS.start: (GPA, 4096)}
    window.provide(window.start + pages(BLOCK), 2)
    assert vm.extents() == [(0, 4096), (BLOCK, 8192)]
    memory.write(GPA + BLOCK, b"ring")
    assert memory.read(GPA + BLOCK, 4) == b"ring"
    for beyond in (GPA + 4096, GPA + BLOCK - 1, GPA + BLOCK + 8192):
        with pytest.raises(GuestMemoryError):
            memory.read(beyond, 1)
    assert window.mapped_pages == 3


def test_more_than_the_guest_may_have_is_never_mapped(window: HotAddWindow) -> None:
    with pytest.raises(AssertionError, match="more is given"):
        window.provide(window.start, window.pages + 1)
    window.provide(window.start, window.pages)
    assert window.mapped_pages == window.pages


def test_pieces_in_a_row_are_one_region_of_memory(window: HotAddWindow, memory: GuestMemory) -> None:
    window.provide(window.start, 1)
    window.provide(window.start + 1, 1)
    memory.write(GPA + 4090, b"across slots")
    assert memory.read(GPA + 4090, 12) == b"across slots"
    assert len(list(memory)) == 2


def test_neighbours_are_merged_when_all_slots_are_in_use(window: HotAddWindow, vm: Vm, memory: GuestMemory) -> None:
    for page in range(10):
        window.provide(window.start + page, 1)
        memory.write(GPA + 4096 * page, b"kept")
        assert vm.extents() == [(0, 4096 * (page + 1))]
        assert len(vm.slots) <= 3
    assert vm.quiets == 4
    assert all(memory.read(GPA + 4096 * page, 4) == b"kept" for page in range(10))


def test_slots_that_cannot_be_merged_are_reported(window: HotAddWindow, vm: Vm) -> None:
    for page in range(0, 6, 2):
        window.provide(window.start + page, 1)
    with pytest.raises(HostError, match="all 3 memory slots are in use; a machine reset"):
        window.provide(window.start + 6, 1)
    assert window.mapped_pages == 3
    window.withdraw()
    window.provide(window.start + 6, 1)


def test_a_merge_that_kvm_refuses_leaves_what_was_there(memory: GuestMemory) -> None:
    class Stingy(Vm):
        def map(self, slot: int, region: Region) -> None:
            if region.size > 4096:
                raise HostError("no memory for that")
            super().map(slot, region)

    vm = Stingy()
    window = make(memory, vm, slots=2)
    window.provide(window.start, 1)
    window.provide(window.start + 1, 1)
    with pytest.raises(HostError, match="no memory for that"):
        window.provide(window.start + 2, 1)
    assert (vm.extents(), len(vm.slots), window.mapped_pages) == ([(0, 8192)], 2, 2)


def test_what_the_guest_did_not_take_is_taken_away(window: HotAddWindow, vm: Vm, memory: GuestMemory) -> None:
    window.provide(window.start, pages(BLOCK))
    window.provide(window.start + pages(BLOCK), pages(BLOCK))
    memory.write(GPA + BLOCK, b"secret")
    window.keep_below(window.start + pages(BLOCK) + 1)
    assert (vm.extents(), vm.quiets) == ([(0, BLOCK + 4096)], 1)
    assert memory.read(GPA + BLOCK, 6) == b"secret"
    window.keep_below(window.start + pages(BLOCK))
    assert (vm.extents(), vm.quiets, window.mapped) == ([(0, BLOCK)], 1, 1)
    with pytest.raises(GuestMemoryError):
        memory.read(GPA + BLOCK, 1)
    window.provide(window.start + pages(BLOCK), 1)
    assert memory.read(GPA + BLOCK, 6) == bytes(6)


def test_nothing_beyond_is_nothing_to_do(window: HotAddWindow, vm: Vm) -> None:
    window.provide(window.start, 5)
    window.keep_below(window.start + 5)
    window.keep_below(window.end)
    assert (vm.extents(), vm.quiets) == ([(0, 5 * 4096)], 0)


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
    window.provide(window.start, 100)
    assert os.fstat(fd).st_blocks * 512 == 100 * 4096
    os.close(fd)


@pytest.mark.parametrize(
    ("wanted", "kvm_slots", "slots"), [(None, 32764, DEFAULT_SLOTS), (None, 32, 16), (3, 509, 3), (400, 509, 400)]
)
def test_slots_are_as_many_as_kvm_has_at_most(wanted: int | None, kvm_slots: int, slots: int) -> None:
    assert usable_slots(wanted, kvm_slots) == slots


def test_more_slots_than_kvm_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="this KVM has 16 to spare; lower --slots"):
        usable_slots(17, 32)


moves = st.lists(
    st.one_of(
        st.tuples(st.just("give"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.just("keep"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@given(moves, st.integers(1, 4))
def test_ram_is_always_what_was_given_and_kept(moves: list[tuple[str, int, int]], slots: int) -> None:
    memory, vm = GuestMemory.flat(MIB), Vm()
    window = make(memory, vm, slots=slots)
    held: set[int] = set()
    for what, at, count in moves:
        match what:
            case "give":
                start = max(held, default=-1) + 1 + at
                try:
                    window.provide(window.start + start, count)
                    held |= set(range(start, start + count))
                except HostError:
                    pass
            case "keep":
                window.keep_below(window.start + at)
                held = {page for page in held if page < at}
            case "reset":
                window.withdraw()
                held.clear()
        assert {p >> 12 for offset, size in vm.extents() for p in range(offset, offset + size, 4096)} == held
        assert {page for page in range(60) if memory.contains(GPA + page * 4096, 4096)} == held
        assert window.mapped_pages == len(held) and window.mapped <= slots
    window.backing.close()


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
