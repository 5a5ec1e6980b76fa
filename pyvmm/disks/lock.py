"""Locks of disk images: no two machines write one image, and none writes what another reads.

Source: QEMU block/file-posix.c, raw_apply_lock_bytes() and raw_check_lock_bytes().

They are QEMU's own locks, so that QEMU, qemu-img and pyvmm keep out of each other's way: who uses an image for
something (bit i of BLK_PERM_*) has a shared lock on byte 100 + i, and who bears no one else doing it on byte 200 + i.
Both belong to the open file description (OFD) and end with the last descriptor of it.
"""

from __future__ import annotations

import errno
import fcntl
from struct import calcsize, pack, unpack

from pyvmm.errors import ConfigError

OFD_GETLK, OFD_SETLK = 36, 37
_FLOCK = "hhxxxxqqixxxx"  # struct flock: type, whence, start, length, pid

USE_BASE, BEAR_BASE = 100, 200
CONSISTENT_READ, WRITE, _WRITE_UNCHANGED, RESIZE = range(4)


def lock_image(fd: int, path: str, *, writable: bool) -> None:
    """Lock an open image. Raises ConfigError if another process uses it in a way that does not go with this one."""
    use = (CONSISTENT_READ, WRITE, RESIZE) if writable else (CONSISTENT_READ,)
    not_borne = (WRITE, RESIZE)
    try:
        for byte in (*(USE_BASE + each for each in use), *(BEAR_BASE + each for each in not_borne)):
            fcntl.fcntl(fd, OFD_SETLK, _lock(fcntl.F_RDLCK, byte))
        for byte in (*(BEAR_BASE + each for each in use), *(USE_BASE + each for each in not_borne)):
            found = fcntl.fcntl(fd, OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
            if unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
                raise ConfigError(f"{path}: another process uses it; end that, or share it with `,ro` in both")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(f"{path}: another process has locked it; end that, or use a copy") from error
        # A file system without locks: nothing can be said about others.


def _lock(kind: int, byte: int) -> bytes:
    return pack(_FLOCK, kind, 0, byte, 1, 0)


assert calcsize(_FLOCK) == 32
