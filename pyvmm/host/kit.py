"""Ingredients of the emulated host: a Debian kernel, and an initramfs of busybox, a few modules and a ready Python.

Source: the Debian packages `linux-image-VERSION-amd64` (the standard one: the cloud flavour has no 9p) and
`busybox-static`, fetched as guest images fetch theirs.

Made in two steps, each kept in the cache folder: the *base* (kernel and modules), and the *kit*, which goes stale
when a file of the Python in it changes (see preload.py). Each is made in a temporary folder and renamed, so a full
disk or an interrupt leaves no half-made one, and a lock makes a second maker wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from images.busybox import busybox
from images.cache import cache_folder, disk_errors, locked, new_folder
from images.cpio import CpioWriter
from images.modules import ModuleTree, module_name
from images.packages import find_package, unpack_package
from pyvmm.errors import HostError
from pyvmm.files import FileError, Shape, load_object
from pyvmm.host import preload

Progress = Callable[[str], None]

# In the order wanted; what they depend on is loaded before them. Options follow the name.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm-amd nested=0")
KERNELS = r"linux-image-6\.1\.0-[0-9]+-amd64"  # one kernel everywhere: the one all this was tried on
SUITES = ("bookworm",)
QUIET_SECONDS = 600.0  # sources edited since are imported by each command anew: a new kit for every save costs more
KEPT = 4  # kits of other checkouts or interpreters kept before the oldest go
VERSION = 2  # raise it when this file makes something different from the same ingredients


TOLD: dict[str, Shape] = {
    "files": [str],
    "stable": str,
    "sources": str,
    "python": str,
    "kernel": str,
    "digest": str,
}
"""Members of kit.json."""


@dataclass(frozen=True, slots=True)
class Kit:
    """A kernel and an initramfs on disk, ready for QEMU."""

    kernel: Path
    initramfs: Path
    digest: str  # names this very kit: part of the snapshot's key
    python: str  # the interpreter in it, by its path on the machine
    sources: str  # digest of pyvmm's sources that are imported in it


def init_script() -> bytes:
    """The first process's script."""
    return resources.files("pyvmm.host").joinpath("guest/init").read_bytes()


def prepare(progress: Progress = lambda line: None) -> Kit:
    """The kit, made if the cache has none or it is stale. Raises HostError in one line if it cannot be made."""
    recipe = repr((VERSION, MODULES, sys.executable, str(preload.REPOSITORY))).encode() + init_script()
    folder = cache_folder("host") / f"kit-{hashlib.sha256(recipe).hexdigest()[:16]}"
    kit = _fresh(folder)
    if kit is None:
        with disk_errors("making the emulated host"), locked("host-kit"):
            kit = _fresh(folder)
            if kit is None:
                progress("making the emulated host's kernel and initramfs (once)")
                _make(folder, _base(progress))
                forget_old(folder, "kit-*", KEPT)
                kit = _fresh(folder)
    if kit is None:
        raise HostError("emulated host: files of its Python change while it is made; try again")
    return kit


def _fresh(folder: Path) -> Kit | None:
    """The kit in `folder`, if it was made from the files as they are."""
    try:
        told = load_object(folder / "kit.json", TOLD)
        if preload.stable_digest(told["files"]) != told["stable"]:
            return None
        if preload.sources_digest() != told["sources"] and preload.sources_quiet_for() > QUIET_SECONDS:
            return None
        initramfs = folder / "initramfs.cpio"
        return Kit(Path(told["kernel"]), initramfs, told["digest"], told["python"], told["sources"])
    except (FileError, OSError):
        return None


def _base(progress: Progress) -> Path:
    """A folder with `vmlinuz` and the modules."""
    target = cache_folder("host", "base")
    if (target / "vmlinuz").exists():
        return target
    package = find_package(KERNELS, SUITES)
    progress(f"fetching {package.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacked.") as folder,
        new_folder(target) as made,
    ):
        whole = Path(folder)
        unpack_package(package, whole)
        (kernel,) = (whole / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, made / "vmlinuz")
        (modules,) = (whole / "lib/modules").iterdir()
        tree = ModuleTree(modules)
        wanted = [name for name, _ in tree.load_order([entry.split()[0] for entry in MODULES])]
        for path in modules.rglob("*.ko*"):
            if module_name(path) in wanted:
                (made / path.name).write_bytes(path.read_bytes())
        shutil.copy(modules / "modules.builtin", made)
    return target


def _make(folder: Path, base: Path) -> None:
    sources = preload.sources_digest()
    python = preload.collect()
    stable = [file for file in [*python.others, *python.files] if not preload.is_own(file)]
    stable_digest = preload.stable_digest(stable)
    initramfs = build_initramfs(base, python, sources)
    told = {
        "files": stable,
        "stable": stable_digest,
        "sources": sources,
        "python": sys.executable,
        "kernel": str(base / "vmlinuz"),
        "digest": hashlib.sha256((base / "vmlinuz").read_bytes() + initramfs).hexdigest()[:16],
    }
    with new_folder(folder) as made:
        (made / "initramfs.cpio").write_bytes(initramfs)
        (made / "kit.json").write_text(json.dumps(told))


def build_initramfs(base: Path, python: preload.Preload, sources: str) -> bytes:
    """The initramfs as a cpio archive."""
    archive = CpioWriter()
    tree = ModuleTree(base)
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
    preload.add_to(archive, python)
    told = {"modules": python.modules, "sources": sources, "repository": str(preload.REPOSITORY)}
    archive.file("host/preload.json", json.dumps(told).encode())
    archive.file("host/python", f"{sys.executable}\t{preload.REPOSITORY}\n".encode())
    return archive.build()


def forget_old(kept: Path, pattern: str, count: int) -> None:
    """Delete all but the `count` newest folders beside `kept` that match; call it with their lock held."""
    others = [path for path in kept.parent.glob(pattern) if path != kept]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[count - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
