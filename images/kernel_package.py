"""A kernel package of the user's own, linux-image-*.deb: unpacked into the cache once.

Since Linux 7.0 Debian's is split: the kernel is in linux-binary-*.deb, the modules are in linux-modules-*.deb. Those
are looked for beside the given file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyvmm.cache import disk_errors, locked
from pyvmm.errors import ConfigError
from pyvmm.files import open_regular
from pyvmm.images.kernel_file import open_kernel
from pyvmm.images.own_kernel import OwnKernel
from pyvmm.images.packages import run, unpack
from pyvmm.paths import cache_folder, new_folder

MAGIC = b"!<arch>\n"
"""The first bytes of a Debian package, and of any archive of ar."""

_PART = re.compile(r"linux-(image|binary|modules|base)-(.*)")


def is_package(path: Path) -> bool:
    """Return whether the file is a package, by its first bytes. Raises FileError."""
    descriptor = open_regular(path)
    try:
        return os.pread(descriptor, len(MAGIC), 0) == MAGIC
    finally:
        os.close(descriptor)


def open_package(package: Path, modules: Path | None, progress: Callable[[str], None]) -> OwnKernel:
    """Unpack a package with its siblings, unless the cache has it, and inspect it. Raises ConfigError, HostError."""
    parts = [package, *_siblings(package)]
    key = hashlib.sha256()
    for part in parts:
        status = part.stat()
        key.update(f"{part.resolve()} {status.st_mtime_ns} {status.st_size}\0".encode("utf-8", "surrogateescape"))
    folder = cache_folder("kernels", f"own-{key.hexdigest()[:24]}")
    if not folder.is_dir():
        with disk_errors(f"cannot unpack {package}"), locked("kernels"):
            if not folder.is_dir():
                with new_folder(folder) as new:
                    for part in parts:
                        progress(f"unpacking {part.name}")
                        unpack(part, new)
    with suppress(OSError):
        os.utime(folder)  # `prune` goes by a folder's own time
    kernels = sorted([*folder.glob("boot/vmlinuz-*"), *folder.glob("**/lib/modules/*/vmlinuz")])
    if not kernels:
        needs = [name for name in _depends(package) if _PART.fullmatch(name)]
        hint = f"put {' and '.join(needs)} beside it" if needs else "give a linux-image-*.deb"
        raise ConfigError(f"--kernel {package}: no kernel in this package; {hint}")
    kernel = open_kernel(kernels[0], modules or _modules(folder))
    kernel.place = str(package)
    kernel.remedy = "give the kernel's other packages beside it"
    return kernel


def _modules(folder: Path) -> Path | None:
    return folder if any(folder.glob("lib/modules/*")) or any(folder.glob("usr/lib/modules/*")) else None


def _siblings(package: Path) -> list[Path]:
    """Return the files beside a package of the other packages that it is split into."""
    match = _PART.match(package.name)
    if match is None:
        return []
    rest = match[2]
    others = [package.with_name(f"linux-{part}-{rest}") for part in ("image", "binary", "modules", "base")]
    return [other for other in others if other != package and other.is_file()]


def _depends(package: Path) -> list[str]:
    text = run("dpkg-deb", "-f", str(package), "Depends")
    return [re.split(r"[ |(]", part.strip())[0] for part in text.split(",") if part.strip()]
