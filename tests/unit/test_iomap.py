"""Addresses to devices."""

from __future__ import annotations

import threading

import pytest

from pyvmm import trace
from pyvmm.iomap import IoMap


class Recorder:
    """Remembers what was asked; answers with more bits than any access has."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self.calls: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size, 0))
        return 0x1122334455667788

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", offset, size, value))


@pytest.mark.parametrize("space", ["port", "mmio"])
def test_offsets_count_from_the_start_of_the_range(space: str) -> None:
    device, io = Recorder(), IoMap(space)
    io.claim(0x3F8, 8, device)
    io.write(0x3FF, 1, 0x42)
    assert io.read(0x3F8, 2) == 0x7788
    assert device.calls == [("write", 7, 1, 0x42), ("read", 0, 2, 0)]


@pytest.mark.parametrize("space", ["port", "mmio"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_unclaimed_address_reads_as_ones_and_swallows_writes(space: str, size: int) -> None:
    io = IoMap(space)
    io.claim(0x60, 1, Recorder())
    assert io.read(0x61, size) == (1 << 8 * size) - 1
    io.write(0x61, size, 0)


def test_claiming_an_address_twice_is_our_bug() -> None:
    io = IoMap("port")
    io.claim(0x3F8, 8, Recorder())
    with pytest.raises(AssertionError, match="0x3ff claimed twice"):
        io.claim(0x3FF, 2, Recorder())
    io.claim(0x400, 1, Recorder())


def test_the_device_s_lock_is_held_during_the_access() -> None:
    lock = threading.RLock()
    free: list[bool] = []

    class Device(Recorder):
        def read(self, offset: int, size: int) -> int:
            def try_it() -> None:
                free.append(lock.acquire(blocking=False))

            other = threading.Thread(target=try_it)
            other.start()
            other.join()
            return 0

    io = IoMap("port")
    io.claim(1, 1, Device(), lock)
    io.read(1, 1)
    assert free == [False]


def test_unclaimed_accesses_are_traced() -> None:
    tail = trace.TailSink()
    trace.subscribe("iomap.unclaimed", tail)
    try:
        IoMap("port").read(0xED, 1)
    finally:
        trace.unsubscribe(tail)
    assert tail.records[0].values == ("port", "read", 0xED, 1)
