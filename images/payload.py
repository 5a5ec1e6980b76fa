"""Cache of unpacked kernels: a bzImage's vmlinux, made once, so that no guest has to unpack it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cache import disk_errors, locked, mark_used
from pyvmm.errors import ConfigError
from pyvmm.files import FileBytes
from pyvmm.firmware import bzimage, elf
from pyvmm.paths import cache_folder, write_private

if TYPE_CHECKING:
    from pyvmm.wire import Buffer


def cached_vmlinux(kernel: Path) -> Path:
    """Return the vmlinux for a bzImage at any path; a file that is no bzImage is returned unchanged.

    Keyed by path, time and size. Raises ConfigError for a damaged bzImage, HostError if the cache cannot be written.
    """
    file = FileBytes(kernel)
    if not bzimage.is_bzimage(file):
        return kernel
    status = os.fstat(file.descriptor)
    key = f"{kernel.resolve()} {status.st_mtime_ns} {status.st_size}"
    target = cache_folder("vmlinux", hashlib.sha256(os.fsencode(key)).hexdigest()[:24])
    if not _whole(target):
        with disk_errors(f"cannot keep the unpacked {kernel}"), locked("vmlinux"):
            write_private(target, unpack(file, str(kernel)))
    mark_used(target)
    return target


def _whole(kept: Path) -> bool:
    """Return whether the cache has the complete vmlinux."""
    try:
        elf.parse(FileBytes(kept))
    except ConfigError:
        return False
    return True


def unpack(data: Buffer | FileBytes, name: str) -> bytes:
    """Unpack the vmlinux in a bzImage, without the zeros at its segments' ends.

    The packed kernel holds .bss as zeros: 14 MiB in Debian's 6.1. Fresh guest memory is zero anyway.
    """
    vmlinux = bzimage.unpack_kernel(data, name)
    elf.trim_zeros(vmlinux, name)
    return bytes(vmlinux)
