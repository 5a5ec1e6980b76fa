"""Copies of a disk's image: shared blocks where the file system has them, else bytes without the holes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pyvmm.errors import HostError

FICLONE = 0x40049409
PIECE = 8 << 20
"""Bytes copied at once, between two calls of `progress`."""


def copy_image(source: Path, target: Path, progress: Callable[[int], object] = lambda done: None) -> bool:
    """Copy `source` to `target`, which must not exist; `progress(bytes)` is called now and then. Return whether the
    copy shares the source's blocks. Raises HostError; an incomplete copy is removed.
    """
    try:
        with open(source, "rb") as old, open(target, "xb") as new:
            os.fchmod(new.fileno(), 0o600)
            try:
                fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
                return True
            except OSError:
                _copy(old.fileno(), new.fileno(), progress)
            os.fsync(new.fileno())
    except FileExistsError:
        raise HostError(f"{target}: exists already; remove it, or name another file") from None
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, OSError):
            raise HostError(f"cannot copy {source} to {target}: {error.strerror}") from error
        raise
    return False


def _copy(old: int, new: int, progress: Callable[[int], object]) -> None:
    size = os.fstat(old).st_size
    os.ftruncate(new, size)
    for start, end in _data(old, size):
        at = start
        while at < end:
            piece = os.pread(old, min(PIECE, end - at), at)
            if not piece:
                return  # truncated meanwhile
            written = 0
            while written < len(piece):
                written += os.pwrite(new, piece[written:], at + written)
            at += len(piece)
            progress(at)


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Return the parts of a file that are not holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at
