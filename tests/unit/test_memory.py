"""Guest RAM: every access checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import HUGE_SIZE, PAGE_SIZE, GuestMemory, HostMemory, Region

HIGH = 1 << 32


@pytest.fixture
def memory() -> GuestMemory:
    """64 KiB at 0 and 64 KiB above 4 GiB."""
    return GuestMemory([Region(HIGH, 0x10000, HostMemory(0x10000)), Region(0, 0x10000, HostMemory(0x10000))])


@pytest.mark.parametrize("gpa", [0, 0xFFF0, HIGH, HIGH + 0xFFF0])
def test_what_was_written_is_read(memory: GuestMemory, gpa: int) -> None:
    memory.write(gpa, b"0123456789abcdef")
    assert memory.read(gpa, 16) == b"0123456789abcdef"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0xFFF1, 16), (0x10000, 1), (HIGH - 1, 1), (HIGH - 1, 2), (HIGH + 0x10000, 1), (-1, 1), (-8, 16), (0, 0x10001),
     (0, -1), (1 << 64, 1), (0, 1 << 64)],
)  # fmt: skip
def test_an_access_not_wholly_in_ram_names_length_and_address(memory: GuestMemory, gpa: int, length: int) -> None:
    for access in (memory.read, memory.view, memory.host_address):
        with pytest.raises(GuestMemoryError, match=f"{length} bytes at gpa {gpa:#x}"):
            access(gpa, length)
    assert not memory.contains(gpa, length)


def test_a_write_past_the_end_changes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        memory.write(0xFFFF, b"ab")
    assert memory.read(0xFFFF, 1) == b"\0"


def test_a_read_is_a_copy_and_a_view_is_live(memory: GuestMemory) -> None:
    copy, view = memory.read(0x100, 1), memory.view(0x100, 1)
    memory.write(0x100, b"x")
    assert (copy, bytes(view)) == (b"\0", b"x")


def test_regions_come_by_rising_address_and_add_up(memory: GuestMemory) -> None:
    assert [r.gpa for r in memory] == [0, HIGH]
    assert memory.size == 0x20000


def test_overlapping_regions_are_our_bug(memory: GuestMemory) -> None:
    with pytest.raises(AssertionError, match="overlap"):
        memory.add(Region(0xF000, 0x1000, HostMemory(0x1000)))


def test_a_removed_region_is_no_ram_any_more(memory: GuestMemory) -> None:
    high = memory.find(HIGH, 1)
    memory.remove(high)
    assert not memory.contains(HIGH, 1)
    assert memory.contains(0, 1)


def test_pieces_are_what_is_ram_of_a_range(memory: GuestMemory) -> None:
    found = [(r.gpa, offset, size) for r, offset, size in memory.pieces(0xF000, HIGH - 0xF000 + 0x2000)]
    assert found == [(0, 0xF000, 0x1000), (HIGH, 0, 0x2000)]
    assert list(memory.pieces(0x10000, 0x1000)) == []


def test_set_bit_returns_whether_the_bit_was_clear(memory: GuestMemory) -> None:
    assert memory.set_bit(0x200, 2047)
    assert not memory.set_bit(0x200, 2047)
    assert memory.read(0x200 + 255, 1) == b"\x80"


def test_a_bit_outside_ram_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        memory.set_bit(0xFFFC, 32)
    assert memory.set_bit(0xFFFC, 31)


def test_compare_exchange_works_on_guest_words(memory: GuestMemory) -> None:
    assert memory.compare_exchange(0x300, 0, 7) == 0
    assert memory.compare_exchange(0x300, 0, 9) == 7
    assert memory.read(0x300, 4) == b"\7\0\0\0"


def test_discarded_pages_read_as_zeros_and_their_neighbours_stay(memory: GuestMemory) -> None:
    memory.write(0, b"x" * 0x10000)
    assert memory.discard(0x1000, 0x2000) == 0x2000
    assert memory.read(0x1000, 0x2000) == bytes(0x2000)
    assert memory.read(0xFFF, 1) + memory.read(0x3000, 1) == b"xx"


def test_discard_skips_what_is_no_ram(memory: GuestMemory) -> None:
    assert memory.discard(0xF000, HIGH) == 0x1000 + 0xF000


def test_discard_frees_shared_memory_too() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 0x10000)
    memory = GuestMemory([Region(0, 0x10000, HostMemory(0x10000, fd=fd))])
    memory.write(0, b"x" * 0x10000)
    before = os.fstat(fd).st_blocks
    memory.discard(0, 0x8000)
    assert os.fstat(fd).st_blocks == before // 2
    assert memory.read(0x7FFF, 2) == b"\0x"
    os.close(fd)


def test_private_memory_is_aligned_for_huge_pages() -> None:
    assert HostMemory(PAGE_SIZE).address % HUGE_SIZE == 0


def test_memory_the_host_cannot_map_is_the_host_s_refusal() -> None:
    with pytest.raises(HostError, match="cannot map"):
        HostMemory(1 << 62)


def test_closed_memory_goes_back_to_the_host_even_while_a_view_is_held() -> None:
    size = 64 << 20

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * PAGE_SIZE

    memory = HostMemory(size)
    memory.view[:] = b"x" * size
    held = memory.view[:1]
    full = resident()
    memory.close()
    assert full - resident() > size // 2
    held.release()


def test_a_closed_file_is_let_go_of_even_while_a_view_is_held() -> None:
    fd = os.memfd_create("let-go-of")
    os.ftruncate(fd, 1 << 20)
    memory = HostMemory(1 << 20, fd=fd)
    os.close(fd)
    held = memory.view[:4]
    held[:] = b"kept"
    memory.close()
    assert "let-go-of" not in Path("/proc/self/maps").read_text()
    assert bytes(held) == bytes(4)
    held[:] = b"safe"
    held.release()
