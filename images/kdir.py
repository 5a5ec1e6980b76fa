"""A kernel build tree: finds the kernel, its configuration and modules in the output of `make`, in whatever state.

A tree is built in place or by `make O=FOLDER`; FOLDER is the tree then. It may have a vmlinux, a bzImage or both,
modules or none, and be half rebuilt.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_text
from pyvmm.images.kernel_config import KernelConfig
from pyvmm.images.kernel_file import kernel_release
from pyvmm.images.modules import ModuleTree
from pyvmm.images.own_kernel import DRIVERS, OwnKernel

BZIMAGE = ("arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage")

HYPERV_SOURCES = ("drivers/hv",)
"""Folders whose sources are compared with their objects: the drivers that are loaded by themselves."""

NAMES = 3
"""Most files that a note names."""

_OPTION_FILES = ("include/config/auto.conf", ".config")
"""The configuration of the last build, and the one of the next."""


def tree_of(kernel: Path) -> Path | None:
    """Return the build tree in which this vmlinux or bzImage lies; None if it does not lie in one."""
    for folder in (kernel.parent, *kernel.parents[3:4]):
        if (folder / ".config").is_file() and (folder / "include/config").is_dir():
            return folder
    return None


def open_kdir(folder: Path, kernel: Path | None = None) -> OwnKernel:
    """Inspect a build tree. `kernel` is the one to boot, without it the tree's. Raises ConfigError if it has none."""
    if not folder.is_dir():
        hint = f"; a kernel's file is --kernel {folder}" if folder.is_file() else ""
        raise ConfigError(f"--kdir {folder}: not a folder{hint}")
    kernel = kernel or _kernel(folder)
    config = _config(folder)
    tree = OwnKernel(
        kernel,
        str(folder),
        release=kernel_release(kernel) or _release(folder),
        config=config,
        modules=ModuleTree(folder),
        remedy=f"`make -C {folder} modules` builds it",
    )
    tree.notes = [*_changed_options(folder), *_changed_sources(folder)]
    return tree


def _kernel(folder: Path) -> Path:
    """Return the tree's vmlinux, which each build makes first, else its bzImage."""
    for path in ("vmlinux", *BZIMAGE):
        if (folder / path).is_file():
            return folder / path
    top = next((each for each in folder.absolute().parents if (each / "vmlinux").is_file()), None)
    hint = "no kernel tree; give its top folder, or that of `make O=FOLDER`"
    if top is not None:
        raise ConfigError(f"--kdir {folder}: a part of a build tree; give {top}")
    if any((folder / name).exists() for name in ("Kbuild", ".config")):
        hint = f"run `make -C {folder} -j$(nproc)`, or give the folder of `make O=FOLDER`"
        if (folder / "Module.symvers").exists() and not (folder / "kernel/fork.c").exists():
            hint = "these are the headers of an installed kernel; give --kernel /boot/vmlinuz-VERSION"
    raise ConfigError(f"--kdir {folder}: neither vmlinux nor {BZIMAGE[0]}; {hint}")


def _release(folder: Path) -> str:
    try:
        return read_text(folder / "include/config/kernel.release").strip()
    except FileError:
        return ""


def _config(folder: Path) -> KernelConfig | None:
    """Return the configuration of the last build; which options this kernel knows is in .config only."""
    texts = []
    for name in _OPTION_FILES:
        try:
            texts.append(read_text(folder / name))
        except FileError:
            continue
    if len(texts) == 2:
        texts[1] = "\n".join(line for line in texts[1].splitlines() if line.startswith("#"))
    return KernelConfig("\n".join(texts), str(folder / _OPTION_FILES[1])) if texts else None


def _changed_options(folder: Path) -> list[str]:
    """Return a note if a driver's option was changed since the last build."""
    try:
        built, wanted = (KernelConfig(read_text(folder / name), name) for name in _OPTION_FILES)
    except FileError:
        return []
    names = {option for driver in DRIVERS for option in driver.options}
    changed = sorted(name for name in names if built[name] != wanted[name])
    if not changed:
        return []
    words = ", ".join(f"{name}={wanted[name]}" for name in changed)
    return [f"the last build was before {words} in its .config: run `make -C {folder}`"]


def _changed_sources(folder: Path) -> list[str]:
    """Return a note for each folder whose sources are newer than what was built of them: a forgotten `make`."""
    notes = []
    for part in HYPERV_SOURCES:
        sources = folder / "source" / part if (folder / "source").is_dir() else folder / part
        newer = []
        with suppress(OSError), os.scandir(sources) as entries:
            for entry in entries:
                with suppress(OSError):  # not built
                    made = os.stat(folder / part / f"{entry.name[:-2]}.o")
                    if entry.name.endswith(".c") and entry.stat().st_mtime_ns > made.st_mtime_ns:
                        newer.append(entry.name)
        if newer:
            names = ", ".join(f"{part}/{name}" for name in sorted(newer)[:NAMES])
            names += f" and {len(newer) - NAMES} more" if len(newer) > NAMES else ""
            notes.append(f"{names} changed since the last build: run `make -C {folder}`, for modules with M={part}")
    return notes
