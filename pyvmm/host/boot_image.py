"""The emulated host's boot image: a Debian kernel, and an initramfs of busybox and a few modules.

Source: the Debian packages `linux-image-VERSION-amd64` (the standard one: the cloud flavour has no 9p) and
`busybox-static`, fetched as guest images fetch theirs.

Nothing in it depends on a checkout of pyvmm or on the Python that runs it: those come as a second archive, at the one
boot before a host is saved (`preload`). All checkouts with the same recipe share it. It is built in a temporary
folder and renamed, so that a full disk or a kill leaves no partial one; a lock makes a second builder wait.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pyvmm.cache import disk_errors, locked
from pyvmm.files import FileError, load_object
from pyvmm.images.busybox import busybox
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.modules import ModuleTree
from pyvmm.images.packages import find_package, unpack_package
from pyvmm.paths import cache_folder, make_folder, new_folder, scratch_folder

Progress = Callable[[str], None]

# In load order; their dependencies are loaded before them. Options follow the name.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm-amd nested=0")
KERNELS = r"linux-image-6\.1\.0-[0-9]+-amd64"  # one fixed kernel series: the one that was tested
SUITES = ("bookworm",)
_DIGEST = "kit.json"  # an older name of the boot image: another one would have every cache build it again
VERSION = 3  # raise it when this file builds different contents from the same packages


@dataclass(frozen=True, slots=True)
class BootImage:
    """A kernel and an initramfs on disk, ready for QEMU."""

    kernel: Path
    initramfs: Path
    digest: str  # identifies their contents, and is part of the key of a saved host


def init_script() -> bytes:
    """Return the script of the first process (/init)."""
    return resources.files("pyvmm.host").joinpath("guest/init").read_bytes()


def prepare(progress: Progress = lambda line: None) -> BootImage:
    """Return the boot image, built if the cache has none. Raises HostError in one line if it cannot be built."""
    recipe = repr((VERSION, MODULES, KERNELS)).encode() + init_script()
    folder = cache_folder("host") / f"boot-{hashlib.sha256(recipe).hexdigest()[:16]}"
    image = _there(folder)
    if image is None:
        with disk_errors("making the emulated host"), locked("host-kit"):
            image = _there(folder)
            if image is None:
                progress("making the emulated host's kernel and initramfs (once)")
                image = _make(folder, progress)
    return image


def _there(folder: Path) -> BootImage | None:
    try:
        digest: str = load_object(folder / _DIGEST, {"digest": str})["digest"]
    except FileError:
        return None
    return BootImage(folder / "vmlinuz", folder / "initramfs.cpio", digest)


def _make(folder: Path, progress: Progress) -> BootImage:
    package = find_package(KERNELS, SUITES)
    progress(f"fetching {package.name}")
    make_folder(folder.parent)
    with scratch_folder(folder.parent) as whole, new_folder(folder) as made:
        unpack_package(package, whole)
        (kernel,) = (whole / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, made / "vmlinuz")
        (modules,) = (whole / "lib/modules").iterdir()
        initramfs = build_initramfs(modules)
        (made / "initramfs.cpio").write_bytes(initramfs)
        digest = hashlib.sha256(kernel.read_bytes() + initramfs).hexdigest()[:16]
        (made / _DIGEST).write_text(json.dumps({"digest": digest}))
    return BootImage(folder / "vmlinuz", folder / "initramfs.cpio", digest)


def build_initramfs(modules: Path) -> bytes:
    """Build the initramfs as a cpio archive, with those of the kernel's `modules` that are needed."""
    archive = CpioWriter()
    tree = ModuleTree(modules)
    options = {name.replace("-", "_"): text for name, _, text in (entry.partition(" ") for entry in MODULES)}
    order = tree.load_order([entry.split()[0] for entry in MODULES])
    for name in ("dev", "proc", "sys", "new", "tmp"):
        archive.folder(name)
    archive.file("init", init_script(), 0o755)
    archive.file("host/busybox", busybox().read_bytes(), 0o755)
    for name, data in order:
        archive.file(f"host/{name}.ko", data)
    lines = [f"{name}.ko {options.get(name, '')}".rstrip() + "\n" for name, _ in order]
    archive.file("host/order", "".join(lines).encode())
    return archive.build()
