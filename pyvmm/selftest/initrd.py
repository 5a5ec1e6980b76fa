"""The initramfs of the self-test: the image's own, the test programs, and a kernel with initramfs to go on to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyvmm.cache import disk_errors, mark_used
from pyvmm.images.catalog import Image
from pyvmm.images.cpio import CpioWriter
from pyvmm.paths import cache_folder, write_private
from pyvmm.selftest.programs import PROGRAMS


def selftest_initrd(image: Image, *, with_kernel: bool = True) -> Path:
    """Return the path of the initramfs in the cache, made if it is not there. Raises HostError.

    `with_kernel`: put the image's bzImage and initramfs into it, for `kexec`.
    """
    digest = hashlib.sha256(f"{image.package} {image.initrd.name} {with_kernel}".encode())
    for name, data in PROGRAMS.items():
        digest.update(name.encode() + data)
    target = cache_folder("initrd", f"selftest-{image.name}-{digest.hexdigest()[:16]}.cpio")
    if not target.exists():
        with disk_errors("cannot make the self-test's initramfs"):
            write_private(target, _build(image, with_kernel))
    mark_used(target)
    return target


def _build(image: Image, with_kernel: bool) -> bytes:
    archive = CpioWriter()
    for name, data in PROGRAMS.items():
        archive.file(f"selftest/{name}", data, 0o755)
    own = image.initrd.read_bytes()
    if with_kernel:
        archive.file("selftest/vmlinuz", image.kernel.read_bytes())
        archive.file("selftest/initrd", own)
    return own + archive.build()
