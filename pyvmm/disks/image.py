"""The interface of an open disk image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Image(Protocol):
    """An open image. The methods with offsets are called on any thread, several at once, and raise OSError."""

    size: int
    """Bytes, a multiple of 512."""
    read_only: bool
    format: str
    path: str

    def try_read(self, views: Sequence[memoryview], offset: int) -> bool:
        """Read like `read` if that takes no waiting for a device; return False, with `views` in any state, if not."""

    def try_write(self, views: Sequence[memoryview], offset: int) -> bool:
        """Write like `write` if that takes no waiting for a device; return False if not."""

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views` from `offset` on; zeroes past the end of the file."""

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views` at `offset`."""

    def flush(self) -> None:
        """Make durable what was written before the call."""

    def discard(self, offset: int, length: int) -> None:
        """Free the space of a range whose content is not needed; a file system without holes keeps it."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; with `unmap` its space may be freed."""

    def resize(self, size: int) -> None:
        """Change the size. On the loop's thread. Raises OSError, ConfigError."""

    def close(self) -> None:
        """Close it. No other method may run."""
