"""A kernel build tree: finds the kernel, its configuration and modules in the output of `make`, in whatever state.

A tree is built in place or by `make O=FOLDER`; FOLDER is the tree then. It may have a vmlinux, a bzImage or both,
modules or none, and be half rebuilt.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_text
from pyvmm.images.kernel_config import KernelConfig
from pyvmm.images.kernel_file import kernel_release
from pyvmm.images.modules import ModuleTree, is_file_name, module_name
from pyvmm.images.outdated import outdated_notes
from pyvmm.images.own_kernel import Driver, OwnKernel

BZIMAGE = ("arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage")

_OPTION_FILES = ("include/config/auto.conf", ".config")
"""The configuration of the last build, and the one of the next."""


def tree_of(kernel: Path) -> Path | None:
    """Return the build tree in which this vmlinux or bzImage lies; None if it does not lie in one."""
    for folder in (kernel.parent, *kernel.parents[3:4]):
        if (folder / ".config").is_file() and (folder / "include/config").is_dir():
            return folder
    return None


def open_kdir(
    folder: Path, kernel: Path | None = None, extra: tuple[str, ...] = (), features: tuple[str, ...] = ()
) -> OwnKernel:
    """Inspect a build tree. `kernel` is the one to boot, without it the tree's. `extra` are further modules that the
    guest will load, `features` what it will need (own_kernel.FEATURE_DRIVERS). Raises ConfigError if the tree has no
    kernel.
    """
    if not folder.is_dir():
        hint = f"; a kernel's file is --kernel {folder}" if folder.is_file() else ""
        raise ConfigError(f"--kdir {folder}: not a folder{hint}")
    kernel = kernel or _kernel(folder)
    config = _config(folder)
    modules = ModuleTree(folder)
    tree = OwnKernel(
        kernel,
        str(folder),
        release=kernel_release(kernel) or _release(folder),
        config=config,
        modules=modules,
        remedy=f"`make -C {folder} modules` builds it",
    )
    tree.features = features
    tree.notes = [*_changed_options(folder, tree.drivers), *_changed_sources(folder, modules, tree.drivers, extra)]
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


def _changed_options(folder: Path, drivers: list[Driver]) -> list[str]:
    """Return a note if a driver's option was changed since the last build."""
    try:
        built, wanted = (KernelConfig(read_text(folder / name), name) for name in _OPTION_FILES)
    except FileError:
        return []
    names = {option for driver in drivers for option in driver.options}
    changed = sorted(name for name in names if built[name] != wanted[name])
    if not changed:
        return []
    words = ", ".join(f"{name}={wanted[name]}" for name in changed)
    return [f"the last build was before {words} in its .config: run `make -C {folder}`"]


def _changed_sources(folder: Path, modules: ModuleTree, drivers: list[Driver], extra: tuple[str, ...]) -> list[str]:
    """Return a note for each folder of a driver, or of an `extra` module, with sources newer than what was built."""
    names = {module_name(Path(each)) for each in extra if not is_file_name(each)}
    places = dict.fromkeys(driver.place for driver in drivers)
    for path in filter(None, map(modules.find, sorted(names))):
        places[str(path.parent.relative_to(folder))] = None
    names |= {driver.module for driver in drivers} & set(modules.names())
    return outdated_notes(folder, list(places), sorted(names))
