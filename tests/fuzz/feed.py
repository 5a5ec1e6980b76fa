"""Arbitrary bytes as numbers and choices, for fuzz targets: a short input reads as zeroes once it is used up.

A change of one byte changes one decision and leaves the later ones where they are, which is what a coverage-guided
fuzzer needs to find its way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

EDGES = (0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@contextmanager
def as_file(data: bytes) -> Iterator[Path]:
    """A file with these bytes, in memory, for the time of the block."""
    descriptor = os.memfd_create("input")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class Feed:
    """`while feed:` runs as long as bytes are left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(max(0, len(self._data) - self._at))

    def number(self, size: int) -> int:
        """`size` bytes as a little-endian number."""
        return int.from_bytes(self.take(size), "little")

    def u8(self) -> int:
        return self.number(1)

    def below(self, limit: int) -> int:
        """0 to limit - 1."""
        return self.number((limit.bit_length() + 7) // 8) % limit

    def choice(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def flag(self) -> bool:
        return bool(self.u8() & 1)

    def word(self, size: int = 8) -> int:
        """A number of `size` bytes that is often at an edge, or near one of `size`'s."""
        kind = self.u8()
        if kind < 64:
            return EDGES[kind % len(EDGES)] & (1 << 8 * size) - 1
        if kind < 128:
            return self.u8()
        if kind < 160:
            return (1 << 8 * size) - 1 - self.u8()
        return self.number(size)
