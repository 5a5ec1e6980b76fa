"""Raw images: a file or block device whose bytes are the disk's.

Reads and writes go straight between guest memory and the file (preadv, pwritev); the host's page cache is the disk's
write cache, and `flush` is fdatasync. What the page cache holds is read at once (RWF_NOWAIT), on the loop: a thread
costs more than the read.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from pyvmm.errors import ConfigError
from pyvmm.views import after, total

SECTOR = 512
IOV_MAX = 1024
ZEROES = memoryview(bytes(1 << 20))

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

TMPFS_MAGIC = 0x01021994

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class RawImage:
    """An `Image` over the open descriptor `fd`, which it owns."""

    format = "raw"

    def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self._in_memory = _is_in_memory(fd)
        self._reads_at_once = self._writes_at_once = True  # as far as is known
        self.size = -(-os.lseek(fd, 0, os.SEEK_END) // SECTOR) * SECTOR

    def try_read(self, views: Sequence[memoryview], offset: int) -> bool:
        """Read what the page cache holds."""
        if self._in_memory:
            self.read(views, offset)
            return True
        if not self._reads_at_once or len(views) > IOV_MAX:
            return False
        try:
            return os.preadv(self.fd, views, offset, os.RWF_NOWAIT) == total(views)
        except BlockingIOError:
            return False
        except OSError as error:  # which `read` will meet again
            self._reads_at_once = error.errno not in _UNSUPPORTED  # by the file system
            return False

    def try_write(self, views: Sequence[memoryview], offset: int) -> bool:
        """Write to the page cache, if that needs nothing else."""
        if self._in_memory:
            self.write(views, offset)
            return True
        if not self._writes_at_once or len(views) > IOV_MAX:
            return False
        try:
            return os.pwritev(self.fd, views, offset, os.RWF_NOWAIT) == total(views)
        except BlockingIOError:
            return False
        except OSError as error:
            self._writes_at_once = error.errno not in _UNSUPPORTED
            return False

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views` from `offset` on."""
        for at in range(0, len(views), IOV_MAX):
            some = views[at : at + IOV_MAX] if len(views) > IOV_MAX else views
            wanted = total(some)
            done = os.preadv(self.fd, some, offset)
            while done < wanted:  # a signal, or the end of the file
                rest = after(some, done)
                more = os.preadv(self.fd, rest, offset + done)
                if not more:
                    for view in rest:
                        view[:] = bytes(len(view))
                    break
                done += more
            offset += wanted

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views` at `offset`."""
        for at in range(0, len(views), IOV_MAX):
            some = views[at : at + IOV_MAX] if len(views) > IOV_MAX else views
            wanted = total(some)
            done = os.pwritev(self.fd, some, offset)
            while done < wanted:
                more = os.pwritev(self.fd, after(some, done), offset + done)
                if not more:
                    raise OSError(errno.EIO, "nothing was written")
                done += more
            offset += wanted

    def flush(self) -> None:
        """Make durable what was written: fdatasync."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, if the file system has them."""
        self._allocate(PUNCH_HOLE | KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes."""
        if unmap and self._allocate(PUNCH_HOLE | KEEP_SIZE, offset, length):
            return
        if self._allocate(ZERO_RANGE | KEEP_SIZE, offset, length):
            return
        end = offset + length
        for at in range(offset, end, len(ZEROES)):
            self.write([ZEROES[: end - at]], at)

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """Call fallocate(2); return False if it is not supported here. Raises OSError."""
        while _libc.fallocate(self.fd, mode, offset, length):
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def resize(self, size: int) -> None:
        """Change the size of the file; of a block device, see what its size is now."""
        actual = os.lseek(self.fd, 0, os.SEEK_END)
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            if error.errno != errno.EINVAL or actual < size:
                raise
        self.size = size

    def close(self) -> None:
        """Close the file, and with it its lock."""
        os.close(self.fd)


def _is_in_memory(fd: int) -> bool:
    """Return whether the file lies in a tmpfs, which never waits for a device but to swap."""
    found = (ctypes.c_long * 16)()
    return not _libc.fstatfs(fd, ctypes.byref(found)) and found[0] == TMPFS_MAGIC


def check_size(size: int) -> None:
    """Raise ConfigError for a size that no disk has."""
    if size <= 0 or size % SECTOR:
        raise ConfigError(f"{size} bytes: a disk has a multiple of {SECTOR} bytes")
