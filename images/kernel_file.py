"""A kernel of the user's own that is not in a build tree: a bzImage or vmlinux, with a folder of modules or without.

The modules of an installed kernel (/boot/vmlinuz-RELEASE) are found by themselves, in lib/modules beside its folder.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.files import FileBytes, FileError, read_text
from pyvmm.firmware import bzimage, elf, multiboot
from pyvmm.images.kernel_config import KernelConfig, embedded_config, vmlinux_release
from pyvmm.images.modules import SUFFIXES, ModuleTree
from pyvmm.images.own_kernel import OwnKernel
from pyvmm.images.payload import cached_vmlinux


def kernel_release(kernel: Path) -> str:
    """Return a kernel's release, as in `uname -r`; empty for what is not Linux. Raises ConfigError."""
    file = FileBytes(kernel)
    if bzimage.is_bzimage(file):
        return bzimage.parse(file, str(kernel)).release
    if file[:4] == elf.ELF_MAGIC and multiboot.find_header(file) is None:
        return vmlinux_release(kernel)
    return ""


def open_kernel(kernel: Path, modules: Path | None = None) -> OwnKernel:
    """Inspect a kernel file, and its modules in `modules`: a /lib/modules/RELEASE, or a folder that holds that.

    Raises ConfigError.
    """
    release = kernel_release(kernel)
    folder = _installed(kernel, release) if modules is None else modules_folder(modules, release)
    remedy = "give --modules DIR" if folder is None else "give --modules of this kernel"
    return OwnKernel(
        kernel,
        str(kernel),
        release=release,
        config=_config(kernel, release, folder),
        modules=None if folder is None else ModuleTree(folder),
        remedy=remedy,
    )


def modules_folder(given: Path, release: str) -> Path:
    """Return the folder of the modules for `release` in `given`. Raises ConfigError if it is not clear which."""
    if not given.is_dir():
        hint = f"; one module is --module {given}" if given.is_file() else ""
        raise ConfigError(f"--modules {given}: not a folder{hint}")
    for folder in (given / release, given / "lib/modules" / release, given / "usr/lib/modules" / release):
        if release and folder.is_dir():
            return folder
    if (given / "kernel").is_dir() or any(path.name.endswith(SUFFIXES) for path in given.iterdir()):
        return given
    if (given / "modules.order").exists() or (given / "modules.dep").exists():
        return given
    parts = next((path for path in (given / "lib/modules", given / "usr/lib/modules") if path.is_dir()), given)
    there = sorted(path.name for path in parts.iterdir() if (path / "kernel").is_dir())
    if len(there) == 1 and not release:
        return parts / there[0]
    holds = f"it has those of {', '.join(there[:5])}" if there else "give /lib/modules/RELEASE or its parent"
    raise ConfigError(f"--modules {given}: no modules of Linux {release or 'this kernel'}; {holds}")


def _installed(kernel: Path, release: str) -> Path | None:
    """Return the modules of an installed kernel, of a package that is unpacked, or of our cache; else None."""
    folder = kernel.absolute().parent
    for place in (folder.parent / "lib/modules" / release, folder.parent / "usr/lib/modules" / release):
        if release and folder.name == "boot" and place.is_dir():
            return place
    if folder.name == release and (folder / "kernel").is_dir():
        return folder  # /usr/lib/modules/RELEASE/vmlinuz, as Fedora, Arch and Debian since Linux 7.0 have it
    return None


def _config(kernel: Path, release: str, modules: Path | None) -> KernelConfig | None:
    places = [kernel.parent / f"config-{release}", kernel.parent / "config"]
    if modules is not None:
        places += [modules / "config", modules / "build/.config"]
    for place in places:
        try:
            return KernelConfig(read_text(place), str(place))
        except FileError:
            continue
    return embedded_config(cached_vmlinux(kernel)) if release else None
