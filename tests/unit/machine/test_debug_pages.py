"""Write watchpoints by read-only pages: what is watched, stored, and given to KVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from pyvmm.gdb.target import RefusedError
from pyvmm.machine.debug_pages import PAGE_LIMIT, WatchedPages
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import GuestMemory


class FakeHardware:
    """Remembers the pages that it was to protect."""

    def __init__(self) -> None:
        self.protected: list[list[int]] = []

    def protect(self, pages: Sequence[int]) -> None:
        self.protected.append(list(pages))


@pytest.fixture
def hardware() -> FakeHardware:
    return FakeHardware()


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(1 << 16)


def apply(pages: WatchedPages, hardware: FakeHardware) -> None:
    pages.apply(cast(Hardware, hardware))


def test_a_write_is_stored_and_found_only_where_it_touches_what_is_watched(
    memory: GuestMemory, hardware: FakeHardware
) -> None:
    pages = WatchedPages(memory)
    pages.insert(0xFFFF1010, 4, 0x1010)
    assert pages.written(0x1010, b"a") == (False, None), "not in force yet"
    apply(pages, hardware)
    assert pages.written(0x100C, b"abcd") == (True, None)
    assert pages.written(0x100D, b"abcd") == (True, 0xFFFF1010)
    assert pages.written(0x1013, b"z") == (True, 0xFFFF1010)
    assert pages.written(0x1014, b"y") == (True, None)
    assert pages.written(0x2010, b"a") == (False, None)
    assert memory.read(0x100C, 9) == b"aabcd\0\0zy"


def test_only_changes_are_passed_to_kvm(memory: GuestMemory, hardware: FakeHardware) -> None:
    pages = WatchedPages(memory)
    for _ in range(3):  # a debugger takes its watchpoints out at each stop
        pages.insert(0x10, 4, 0x3010)
        pages.insert(0x10, 4, 0x3010)
        pages.insert(0x20, 4, 0x1020)
        apply(pages, hardware)
        pages.remove(0x10, 4)
        pages.remove(0x20, 4)
    assert hardware.protected == [[0x1000, 0x3000]]
    apply(pages, hardware)
    assert hardware.protected[1:] == [[]]
    pages.insert(0x10, 4, 0x3010)
    apply(pages, hardware)
    pages.forget()  # a reset
    apply(pages, hardware)
    assert hardware.protected[2:] == [[0x3000], [0x3000]]


def test_pages_are_bounded(memory: GuestMemory) -> None:
    pages = WatchedPages(memory)
    for n in range(PAGE_LIMIT):
        pages.insert(n, 1, n << 12)
    pages.insert(99, 1, 5)
    with pytest.raises(RefusedError, match="3 pages"):
        pages.insert(100, 1, PAGE_LIMIT << 12)
