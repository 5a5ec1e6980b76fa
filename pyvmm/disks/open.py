"""Opens disk images."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from pyvmm.disks.image import Image
from pyvmm.disks.lock import lock_image
from pyvmm.disks.raw import RawImage
from pyvmm.disks.spec import PROGRAM, DiskSpec
from pyvmm.errors import ConfigError

MAGICS = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc", b"<<< Oracle": "vdi"}
"""First bytes of formats, for a hint: a guess must not decide how a file that a guest writes is read."""


def open_image(spec: DiskSpec) -> Image:
    """Open and lock an image. Raises ConfigError, HostError."""
    if spec.format in (None, "raw"):
        return RawImage(open_locked(spec), spec.path, read_only=spec.read_only)
    from pyvmm.disks.storage_daemon import open_with_daemon

    return open_with_daemon(spec)


def adopt_image(fd: int, spec: DiskSpec) -> Image:
    """Return the image of an open file, which its opener has locked. Raises ConfigError; `fd` is open then."""
    if spec.format not in (None, "raw"):
        raise ConfigError(f"{spec.path}: format={spec.format} is served by {PROGRAM}: send its connections (x-nbd)")
    check_file(fd, spec)
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    if not writable and not spec.read_only:
        raise ConfigError(f"{spec.path}: it was opened for reading only; add `,ro`")
    return RawImage(fd, spec.path, read_only=spec.read_only)


def open_locked(spec: DiskSpec) -> int:
    """Open and lock an image's file; return its descriptor. Raises ConfigError."""
    path = spec.path
    flags = (os.O_RDONLY if spec.read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}{_next_step(spec, error)}") from error
    try:
        check_file(fd, spec)
        lock_image(fd, path, writable=not spec.read_only)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_file(fd: int, spec: DiskSpec) -> None:
    """Raise ConfigError if an open file cannot be this disk."""
    found = os.fstat(fd)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise ConfigError(f"{spec.path}: neither a file nor a block device")
    if not os.lseek(fd, 0, os.SEEK_END):
        raise ConfigError(f"{spec.path}: it is empty; `truncate -s 8G {spec.path}` gives it a size")
    if spec.format is None:
        start = os.pread(fd, 16, 0)
        for magic, name in MAGICS.items():
            if start.startswith(magic):
                raise ConfigError(f"{spec.path}: looks like {name}; add `,format={name}`, or `,format=raw` if not")


def _next_step(spec: DiskSpec, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"; `truncate -s 8G {spec.path}` makes an empty disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not spec.read_only:
        return "; add `,ro` to read it only"
    return ""
