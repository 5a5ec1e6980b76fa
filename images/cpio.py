"""The archive format of an initramfs: cpio "newc", written reproducibly.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

    header (6 + 13*8 hex digits) | name, zero | pad to 4 | contents | pad to 4 | ... | TRAILER!!!

Owners are root and times zero, so that the same input gives the same bytes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pyvmm.errors import ConfigError

MAGIC = b"070701"
HEADER_SIZE = 110
TRAILER = "TRAILER!!!"
BLOCK = 512  # the archive is padded to this, as by cpio
MEMBER_LIMIT = (1 << 32) - 1  # eight hex digits
_DIGITS = re.compile(rb"[0-9a-fA-F]{104}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. `data` is a file's contents or a symlink's target; `device` (major, minor) is for device nodes."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class CpioWriter:
    """Collects members; `build` returns the archive. Folders must precede their contents, for Linux's unpacker."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._names: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder and its parents, unless already there."""
        parent = name.rpartition("/")[0]
        if parent:
            self.folder(parent)
        if name not in self._names:
            self.add(Entry(name, stat.S_IFDIR | mode))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._parent(name)
        self.add(Entry(name, stat.S_IFREG | mode, data))

    def symlink(self, name: str, target: str) -> None:
        self._parent(name)
        self.add(Entry(name, stat.S_IFLNK | 0o777, os.fsencode(target)))

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._parent(name)
        self.add(Entry(name, stat.S_IFCHR | mode, device=(major, minor)))

    def add(self, entry: Entry) -> None:
        """Add a member as given. Raises ValueError for a name already there."""
        if entry.name in self._names:
            raise ValueError(f"{entry.name} is already in the archive")
        self._names.add(entry.name)
        self._pieces += self._member(entry, len(self._names))

    def build(self) -> bytes:
        """Return the archive so far, closed by its trailer."""
        whole = b"".join([*self._pieces, *self._member(Entry(TRAILER, 0), 0)])
        return whole.ljust(-(-len(whole) // BLOCK) * BLOCK, b"\0")

    def _parent(self, name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent:
            self.folder(parent)

    @staticmethod
    def _member(entry: Entry, inode: int) -> Iterator[bytes]:
        name = os.fsencode(entry.name) + b"\0"
        if b"\0" in name[:-1]:
            raise ConfigError(f"{entry.name!r}: a zero byte cannot be in a name of an archive")
        if len(entry.data) > MEMBER_LIMIT:
            raise ConfigError(f"{entry.name}: {len(entry.data)} bytes are more than a member of a cpio archive holds")
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        major, minor = entry.device
        numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
        header = MAGIC + b"".join(b"%08X" % number for number in numbers)
        for piece in (header + name, entry.data):
            yield piece
            yield bytes(-len(piece) % 4)


def read_cpio(data: bytes) -> Iterator[Entry]:
    """Return the members of an uncompressed archive, without trailer. Raises ValueError if damaged or truncated."""
    at = 0
    while True:
        header = data[at : at + HEADER_SIZE]
        if len(header) < HEADER_SIZE or header[:6] != MAGIC:
            raise ValueError(f"no cpio header at {at}")
        if not _DIGITS.fullmatch(header, 6):
            raise ValueError(f"no cpio header at {at}")
        numbers = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, name_size = numbers[1], numbers[6], numbers[9], numbers[10], numbers[11]
        start = at + HEADER_SIZE + name_size
        if not name_size or start > len(data):
            raise ValueError(f"the name at {at} reaches past the end")
        name = os.fsdecode(data[at + HEADER_SIZE : start - 1])
        start += -start % 4
        if start + size > len(data):
            raise ValueError(f"{name}: {size} bytes announced, {len(data) - start} left")
        if name == TRAILER:
            return
        yield Entry(name, mode, data[start : start + size], (major, minor))
        at = start + size + -(start + size) % 4
