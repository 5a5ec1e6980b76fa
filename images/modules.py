"""Kernel modules for the initramfs: which files, in which order, unpacked.

Source: Linux scripts/mod/modpost.c (the section .modinfo), kmod's naming of compressed modules, depmod(8).

Dependencies are read from the modules themselves: a build tree and a kernel package have no modules.dep before they
are installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_file, read_text

MODULE_LIMIT = 256 << 20
"""Largest module in bytes, packed or not: the largest (amdgpu with its debugging information) has some 200 MiB."""

CHAIN_LIMIT = 100
"""Longest chain of dependencies; real chains have fewer than ten."""

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")

_PREFERRED = ("updates", "extra")
"""Subfolders of /lib/modules/RELEASE whose modules go before those of `kernel`, as for depmod."""

_WITHOUT_MODULES = ("Documentation", "LICENSES", "debian", "include", "scripts", "tools")
"""Folders of a build tree that a search for modules leaves out."""


class ModuleTree:
    """The modules in a folder (lib/modules/RELEASE, or a kernel build tree), found by name.

    A name is looked up in the folder's list of modules (modules.dep or modules.order), which avoids a walk through
    10,000s of files; a name that is not listed is searched for. `builtin` are the names of what the kernel has built
    in, besides those in modules.builtin.
    """

    def __init__(self, folder: Path, builtin: Iterable[str] = ()) -> None:
        self.folder = folder
        self._listed: dict[str, Path] = {}
        self._walked: dict[str, Path] | None = None
        for line in _listing(folder):
            path = folder / line
            self._listed.setdefault(module_name(path), path)
        self._builtin = set(builtin)
        lines = _lines(folder / "modules.builtin")
        self._builtin |= {module_name(Path(line)) for line in lines}

    def names(self) -> list[str]:
        """Return the names of the listed modules."""
        return sorted(self._listed)

    def find(self, name: str, place: str = "") -> Path | None:
        """Return the file of a module; None if there is none. In a build tree with `place`, the module's folder, a
        module that is not listed is looked for only there.
        """
        path = self._listed.get(name)
        if path is not None:
            stem = str(path)[: str(path).rindex(".ko")]
            for suffix in SUFFIXES:
                if os.path.isfile(stem + suffix):
                    return Path(stem + suffix)
        if place and (self.folder / place).is_dir():
            paths = (self.folder / place / f"{name}{suffix}" for suffix in SUFFIXES)
            return next((path for path in paths if path.is_file()), None)
        if self._walked is None:
            self._walked = {module_name(found): found for found in _walk(self.folder)}
        return self._walked.get(name)

    def is_builtin(self, name: str) -> bool:
        return name in self._builtin

    def load_order(self, wanted: list[str]) -> list[tuple[str, bytes]]:
        """Return `wanted` and their dependencies in load order as (name, contents), without built-in ones.

        An item of `wanted` is a module's name, or the path of a file. Raises ConfigError for a module that is neither
        there nor built in.
        """
        return load_order(wanted, self.find, self.is_builtin, str(self.folder))


def load_order(
    wanted: list[str], find: Callable[[str], Path | None], is_builtin: Callable[[str], bool], where: str
) -> list[tuple[str, bytes]]:
    """Return modules and their dependencies in load order, as `ModuleTree.load_order` does."""
    order: dict[str, bytes] = {}
    files = {module_name(Path(each)): Path(each) for each in wanted if is_file_name(each)}

    def visit(name: str, needed_by: tuple[str, ...]) -> None:
        if name in order or name in needed_by or (name not in files and is_builtin(name)):
            return
        path = files.get(name) or find(name)
        if path is None:
            by = f" (needed by {needed_by[-1]})" if needed_by else ""
            raise ConfigError(f"{where}: no module {name}{by}; enable it in the kernel's configuration and build it")
        if len(needed_by) >= CHAIN_LIMIT:
            raise ConfigError(f"{path}: the last of {CHAIN_LIMIT} modules that each need the next; build it again")
        data = read_module(path)
        try:
            needs = depends(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        for need in needs:
            visit(need, (*needed_by, name))
        order[name] = data

    for each in wanted:
        visit(module_name(Path(each)), ())
    return list(order.items())


def is_file_name(wanted: str) -> bool:
    """Return whether this is the path of a module's file, not the name of a module."""
    return wanted.endswith(SUFFIXES) or "/" in wanted


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except FileError:
        return []


def _listing(folder: Path) -> Iterator[str]:
    """Return the paths in the folder's list of modules: depmod's if there is one, else kbuild's."""
    found = [line.partition(":")[0] for line in _lines(folder / "modules.dep")]
    if found:
        yield from found
        return
    # kbuild's lines are kernel/drivers/... .ko up to Linux 6.2, later drivers/... .o; installed, kernel/ is a folder.
    installed = (folder / "kernel").is_dir() and not (folder / "Kbuild").exists()
    for line in _lines(folder / "modules.order"):
        path = line.strip().removeprefix("kernel/")
        if path:
            path = path.removesuffix(".o").removesuffix(".ko") + ".ko"
            yield f"kernel/{path}" if installed else path


def _walk(folder: Path) -> Iterator[Path]:
    """Return all modules in the folder, preferred ones last."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _WITHOUT_MODULES and not name.startswith(".")]
        found += [Path(here, name) for name in files if name.endswith(SUFFIXES)]
    rank = {name: number for number, name in enumerate(reversed(_PREFERRED))}
    yield from sorted(found, key=lambda path: rank.get(path.relative_to(folder).parts[0], -1))


def module_name(path: Path) -> str:
    """Return the module's name for a file: hyperv_keyboard for `hyperv-keyboard.ko.xz`."""
    return path.name.partition(".")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Read a module's ELF file, unpacked to save the guest that work. Raises ConfigError if it is no module."""
    data = read_file(path, MODULE_LIMIT)
    if path.suffix == ".ko":
        return data
    from pyvmm.firmware.decompress import PackedError, decompress

    try:
        return bytes(decompress(data, MODULE_LIMIT))
    except PackedError as error:
        raise ConfigError(f"{path}: cannot unpack it: {error}; build or fetch it again") from error


def depends(module: bytes) -> list[str]:
    """Return the modules that must be loaded before this one. Raises ConfigError if the file is no module."""
    return [name.replace("-", "_") for name in modinfo_value(module, "depends").split(",") if name]


def modinfo_value(module: bytes, key: str) -> str:
    """Return a value of .modinfo, empty if it has none. Raises ConfigError if the file is no module."""
    for line in modinfo(module):
        name, _, value = line.partition("=")
        if name == key:
            return value
    return ""


def modinfo(module: bytes) -> list[str]:
    """Return the strings of the section .modinfo, `key=value` each."""
    try:
        (sections,) = unpack_from("<Q", module, 40)
        size, count, names_index = unpack_from("<HHH", module, 58)
        (names,) = unpack_from("<Q", module, sections + names_index * size + 24)
        for index in range(count):
            at = sections + index * size
            (label,) = unpack_from("<I", module, at)
            if module[names + label : names + label + 9] == b".modinfo\0":
                offset, length = unpack_from("<QQ", module, at + 24)
                items = module[offset : offset + length].split(b"\0")
                return [item.decode(errors="replace") for item in items if item]
    except (StructError, OverflowError) as error:
        raise ConfigError(f"not a kernel module: {error}") from error
    raise ConfigError("not a kernel module: no section .modinfo")
