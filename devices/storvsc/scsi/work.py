"""Answers and work that commands result in. Offsets and lengths are bytes, checked against the disk's size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyvmm.disks.image import Image


@dataclass(slots=True)
class Reply:
    """The command is done; `data` goes to the guest, as much of it as there is room for."""

    data: bytes = b""


class Work(Protocol):
    """Work for the disk's file: `run` is called on a thread, with the guest's memory, and may raise OSError."""

    @property
    def writes(self) -> bool:
        """Whether an error of it is an error of writing."""

    def run(self, image: Image, views: list[memoryview]) -> int:
        """Do the work; return the bytes moved to or from the guest."""


@dataclass(slots=True)
class Read:
    offset: int
    length: int
    writes: bool = False

    def run(self, image: Image, views: list[memoryview]) -> int:
        image.read(views, self.offset)
        return self.length


@dataclass(slots=True)
class Write:
    """`through`: the data must be on the disk before the answer (FUA)."""

    offset: int
    length: int
    through: bool = False
    writes: bool = True

    def run(self, image: Image, views: list[memoryview]) -> int:
        image.write(views, self.offset)
        if self.through:
            image.flush()
        return self.length


@dataclass(slots=True)
class Flush:
    writes: bool = True

    def run(self, image: Image, views: list[memoryview]) -> int:
        image.flush()
        return 0


@dataclass(slots=True)
class Discard:
    """UNMAP: the guest needs the content of these ranges no more. `moved` is the length of its list."""

    ranges: list[tuple[int, int]]
    moved: int
    writes: bool = True

    def run(self, image: Image, views: list[memoryview]) -> int:
        for offset, length in self.ranges:
            image.discard(offset, length)
        return self.moved


@dataclass(slots=True)
class Fill:
    """WRITE SAME: repeat one block. A block of zeroes may leave a hole in the file, if the guest asks (`unmap`)."""

    offset: int
    length: int
    block: bytes
    moved: int
    unmap: bool = False
    writes: bool = field(default=True)

    def run(self, image: Image, views: list[memoryview]) -> int:
        if not any(self.block):
            image.write_zeroes(self.offset, self.length, unmap=self.unmap)
        else:
            per_piece = max(1, _FILL_PIECE // len(self.block))
            piece = memoryview(self.block * per_piece)
            end = self.offset + self.length
            for offset in range(self.offset, end, len(piece)):
                image.write([piece[: end - offset]], offset)
        return self.moved


_FILL_PIECE = 1 << 20
