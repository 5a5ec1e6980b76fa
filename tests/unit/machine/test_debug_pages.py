"""Watchpoints by read-only and missing pages: what is watched, stored, and given to KVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from pyvmm.gdb.target import Kind, RefusedError
from pyvmm.machine.debug_pages import PAGE_LIMIT, Hit, WatchedPages
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import GuestMemory


class FakeHardware:
    """Remembers the pages that it was to protect."""

    def __init__(self) -> None:
        self.protected: list[dict[int, bool]] = []

    def protect(self, pages: Mapping[int, bool]) -> None:
        self.protected.append(dict(pages))


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
    pages.insert(Kind.WRITE, 0xFFFF1010, 4, 0x1010)
    assert pages.written(0x1010, b"a") == (False, None), "not in force yet"
    apply(pages, hardware)
    assert pages.written(0x100C, b"abcd") == (True, None)
    assert pages.written(0x100D, b"abcd") == (True, Hit("watch", 0xFFFF1010))
    assert pages.written(0x1013, b"z") == (True, Hit("watch", 0xFFFF1010))
    assert pages.written(0x1014, b"y") == (True, None)
    assert pages.written(0x2010, b"a") == (False, None)
    assert memory.read(0x100C, 9) == b"aabcd\0\0zy"


def test_a_missing_page_is_read_and_written_here_and_each_kind_sees_its_accesses(
    memory: GuestMemory, hardware: FakeHardware
) -> None:
    memory.write(0x1000, bytes(range(64)))
    pages = WatchedPages(memory)
    for kind, address in ((Kind.WRITE, 0x1000), (Kind.READ, 0x1010), (Kind.ACCESS, 0x1020)):
        pages.insert(kind, address, 4, address)
    pages.insert(Kind.WRITE, 0x2000, 1, 0x2000)
    assert pages.read(0x1010, 4) == (None, None), "not in force yet"
    apply(pages, hardware)
    assert hardware.protected == [{0x1000: True, 0x2000: False}]
    assert pages.read(0x1000, 2) == (b"\x00\x01", None)
    assert pages.read(0x100E, 3) == (b"\x0e\x0f\x10", Hit("rwatch", 0x1010))
    assert pages.read(0x1023, 1) == (b"\x23", Hit("awatch", 0x1020))
    assert pages.read(0x2000, 1) == (None, None), "a read-only page is read without an exit"
    assert pages.written(0x1003, b"x") == (True, Hit("watch", 0x1000))
    assert pages.written(0x1010, b"y") == (True, None)
    assert pages.written(0x1020, b"z") == (True, Hit("awatch", 0x1020))
    assert pages.read(0x1010, 1) == (b"y", Hit("rwatch", 0x1010))
    pages.remove(Kind.READ, 0x1010, 4)
    pages.remove(Kind.ACCESS, 0x1020, 4)
    apply(pages, hardware)
    assert hardware.protected[1:] == [{0x1000: False, 0x2000: False}]


def test_only_changes_are_passed_to_kvm(memory: GuestMemory, hardware: FakeHardware) -> None:
    pages = WatchedPages(memory)
    for _ in range(3):  # a debugger takes its watchpoints out at each stop
        pages.insert(Kind.WRITE, 0x10, 4, 0x3010)
        pages.insert(Kind.WRITE, 0x10, 4, 0x3010)
        pages.insert(Kind.READ, 0x20, 4, 0x1020)
        apply(pages, hardware)
        pages.remove(Kind.WRITE, 0x10, 4)
        pages.remove(Kind.READ, 0x20, 4)
    assert hardware.protected == [{0x1000: True, 0x3000: False}]
    apply(pages, hardware)
    assert hardware.protected[1:] == [{}]
    pages.insert(Kind.WRITE, 0x10, 4, 0x3010)
    apply(pages, hardware)
    pages.forget()  # a reset
    apply(pages, hardware)
    assert hardware.protected[2:] == [{0x3000: False}, {0x3000: False}]


def test_pages_are_bounded(memory: GuestMemory) -> None:
    pages = WatchedPages(memory)
    for n in range(PAGE_LIMIT):
        pages.insert(Kind.WRITE, n, 1, n << 12)
    pages.insert(Kind.ACCESS, 99, 1, 5)
    with pytest.raises(RefusedError, match="3 pages"):
        pages.insert(Kind.READ, 100, 1, PAGE_LIMIT << 12)
