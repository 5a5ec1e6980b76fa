"""Unpacked kernels in the cache: a bzImage's vmlinux, made once, so that no guest spends its boot on unpacking."""

from __future__ import annotations

import hashlib
from pathlib import Path

from firmware import bzimage, elf
from images.cache import cache_folder, disk_errors, locked, write_file
from pyvmm.errors import ConfigError


def cached_vmlinux(kernel: Path) -> Path:
    """The vmlinux for a bzImage anywhere; a file that is no bzImage is returned as it is.

    Kept by path, time and size. Raises ConfigError for a damaged bzImage, HostError if the cache cannot be written.
    """
    try:
        status = kernel.stat()
        with kernel.open("rb") as file:
            start = file.read(0x300)
    except OSError as error:
        raise ConfigError(f"{kernel}: cannot read it: {error.strerror}") from error
    if not bzimage.is_bzimage(start):
        return kernel
    key = f"{kernel.resolve()} {status.st_mtime_ns} {status.st_size}"
    target = cache_folder("vmlinux", hashlib.sha256(key.encode()).hexdigest()[:24])
    if not target.exists():
        with disk_errors(f"cannot keep the unpacked {kernel}"), locked("vmlinux"):
            write_file(target, unpack(kernel.read_bytes(), str(kernel)))
    return target


def unpack(data: bytes, name: str) -> bytes:
    """The vmlinux in a bzImage, with the zeros at its segments' ends taken out of the file.

    The packed kernel holds .bss as zeros: 14 MiB in Debian's 6.1. Fresh guest memory is zero anyway.
    """
    vmlinux = bytearray(bzimage.unpack_kernel(data, name))
    elf.trim_zeros(vmlinux, name)
    return bytes(vmlinux)
