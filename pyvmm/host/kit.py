"""Ingredients of the emulated host: a Debian kernel, and an initramfs of busybox, a few modules and our `init`.

Source: the Debian packages `linux-image-VERSION-amd64` (the standard one: the cloud flavour has no 9p) and
`busybox-static`, fetched by `apt-get download`; cpio "newc", Linux Documentation/driver-api/early-userspace.

A kit is made once and kept in the cache folder; it is made in a temporary folder and renamed, so a full disk or an
interrupt leaves no half-made kit behind, and a lock makes a second maker wait for the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from pyvmm.errors import HostError

Progress = Callable[[str], None]

# In the order wanted; what they depend on is loaded before them. Options follow the name.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm-amd nested=0")
KIT_VERSION = 1  # raise it when this file makes something different from the same ingredients


@dataclass(frozen=True, slots=True)
class Kit:
    """A kernel and an initramfs on disk, ready for QEMU."""

    kernel: Path
    initramfs: Path
    digest: str  # names this very kit: part of the snapshot's key


def cache_folder() -> Path:
    """The user's cache folder for pyvmm: $PYVMM_CACHE, else under $XDG_CACHE_HOME, else under ~/.cache."""
    if given := os.environ.get("PYVMM_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pyvmm"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: the second of two makers of the same thing waits for the first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; set PYVMM_CACHE to a folder that can be written") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def init_script() -> bytes:
    """The first process's script."""
    return resources.files("pyvmm.host").joinpath("guest/init").read_bytes()


def prepare(progress: Progress = lambda line: None) -> Kit:
    """The kit, made if the cache has none. Raises HostError in one line if it cannot be made."""
    recipe = hashlib.sha256(repr((KIT_VERSION, MODULES)).encode() + init_script()).hexdigest()[:16]
    folder = cache_folder() / "host" / f"kit-{recipe}"
    if not (folder / "digest").exists():
        with locked(folder.parent / "kit.lock"):
            if not (folder / "digest").exists():
                progress("making the emulated host's kernel and initramfs (once)")
                _make(folder)
    digest = (folder / "digest").read_text()
    return Kit(folder / "vmlinuz", folder / "initramfs.cpio", digest)


def _make(folder: Path) -> None:
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            raise HostError(f"emulated host: no {program}: its kernel is made from Debian packages")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as name:
            work = Path(name)
            kernel_deb, busybox_deb = download([_kernel_package(), "busybox-static"], work)
            kernel, modules = _unpack_kernel(kernel_deb)
            busybox = _member(busybox_deb, re.compile(r"\./(usr/)?bin/busybox$"))
            made = work / "kit"
            made.mkdir()
            initramfs = build_initramfs(busybox, modules, init_script())
            (made / "vmlinuz").write_bytes(kernel)
            (made / "initramfs.cpio").write_bytes(initramfs)
            (made / "digest").write_text(hashlib.sha256(kernel + initramfs).hexdigest()[:16])
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except OSError as error:
        raise HostError(f"emulated host: making its kernel in {folder.parent}: {error.strerror}") from error


def _run(argv: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        hint = "; is there a network, and was apt-get update run?" if argv[0] == "apt-get" else ""
        raise HostError(f"{' '.join(argv[:2])}: {lines[-1]}{hint}")
    return done.stdout


def _kernel_package() -> str:
    listing = _run(["apt-cache", "depends", "linux-image-amd64"])
    found = re.search(r"Depends: (linux-image-\S+)", listing)
    if not found:
        raise HostError("emulated host: apt knows no linux-image-amd64: run apt-get update on an amd64 Debian")
    return found[1]


def download(packages: list[str], folder: Path) -> list[Path]:
    """Fetch Debian packages into `folder`, one file each, in the order asked."""
    _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=folder)
    files = [next(iter(folder.glob(f"{package}_*.deb")), None) for package in packages]
    for package, file in zip(packages, files, strict=True):
        if file is None:
            raise HostError(f"apt-get download {package}: no file came")
    return [file for file in files if file is not None]


@contextlib.contextmanager
def _contents(deb: Path) -> Iterator[tarfile.TarFile]:
    """The files of a .deb, as a stream that can be read once, in order."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        except tarfile.TarError as error:
            raise HostError(f"{deb.name}: not a whole Debian package ({error})") from error
        finally:
            process.kill()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle: IO[bytes] | None = archive.extractfile(member)
    return handle.read() if handle else b""


def _member(deb: Path, pattern: re.Pattern[str]) -> bytes:
    with _contents(deb) as archive:
        for member in archive:
            if member.isfile() and pattern.match(member.name):
                return _read(archive, member)
    raise HostError(f"{deb.name}: holds no {pattern.pattern}")


def _unpack_kernel(deb: Path) -> tuple[bytes, dict[str, bytes]]:
    """The bzImage, and every module that could be needed by name (with - turned to _)."""
    kernel, modules = b"", {}
    folders = ("/kernel/arch/x86/kvm/", "/kernel/drivers/virtio/", "/kernel/drivers/char/", "/kernel/virt/")
    folders += ("/kernel/drivers/crypto/ccp/", "/kernel/fs/9p/", "/kernel/fs/netfs/", "/kernel/fs/fscache/")
    folders += ("/kernel/net/9p/",)
    with _contents(deb) as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.name.startswith("./boot/vmlinuz-"):
                kernel = _read(archive, member)
            elif any(folder in member.name for folder in folders):
                name, _, ending = member.name.rpartition("/")[2].partition(".ko")
                if ending in ("", ".xz"):
                    content = _read(archive, member)
                    modules[name.replace("-", "_")] = lzma.decompress(content) if ending else content
    if not kernel:
        raise HostError(f"{deb.name}: holds no kernel")
    return kernel, modules


def module_order(modules: dict[str, bytes], wanted: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names and options in an order in which each finds what it depends on. Built-in ones are left out."""
    order: dict[str, str] = {}

    def visit(name: str, options: str) -> None:
        content = modules.get(name)
        if content is None or name in order:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in found[1].decode().split(",") if found else []:
            visit(needed.replace("-", "_"), "")
        order[name] = options

    for entry in wanted:
        name, _, options = entry.partition(" ")
        visit(name.replace("-", "_"), options)
    return list(order.items())


def build_initramfs(busybox: bytes, modules: dict[str, bytes], init: bytes) -> bytes:
    """The initramfs as a cpio archive."""
    order = module_order(modules, MODULES)
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o040755, b"") for name in ("bin", "dev", "proc", "sys", "new", "modules")
    ]
    entries += [("init", 0o100755, init), ("bin/busybox", 0o100755, busybox)]
    listing = "".join(f"{name}.ko {options}".rstrip() + "\n" for name, options in order)
    entries.append(("modules/order", 0o100644, listing.encode()))
    entries += [(f"modules/{name}.ko", 0o100644, modules[name]) for name, _ in order]
    return _cpio(entries)


def _cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray()
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += content + bytes(-len(content) % 4)
    return bytes(out)
