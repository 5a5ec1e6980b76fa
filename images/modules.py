"""Kernel modules for the initramfs: which files, in which order, unpacked.

Source: Linux scripts/mod/modpost.c (the section .modinfo), kmod's naming of compressed modules.

Dependencies are read from the modules themselves: a kernel package has no modules.dep before it is installed.
"""

from __future__ import annotations

from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from pyvmm.errors import ConfigError
from pyvmm.files import read_file, read_text

MODULE_LIMIT = 256 << 20
"""Largest module in bytes, packed or not: the largest (amdgpu with its debugging information) has some 200 MiB."""

CHAIN_LIMIT = 100
"""Longest chain of dependencies; real chains have fewer than ten."""

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class ModuleTree:
    """The modules in a folder (lib/modules/RELEASE, or a kernel build tree), found by name."""

    def __init__(self, folder: Path, listing: Path | None = None) -> None:
        """Index `folder`. `listing` (a build tree's modules.order) avoids a walk through 10,000s of files."""
        self.folder = folder
        self._files: dict[str, Path] = {}
        if listing is not None and listing.is_file():
            # Its lines are kernel/drivers/... .ko up to Linux 6.2, later drivers/... .o.
            lines = [line.removeprefix("kernel/") for line in read_text(listing).split()]
            paths = [folder / (line[:-2] + ".ko" if line.endswith(".o") else line) for line in lines]
        else:
            paths = [path for path in folder.rglob("*.ko*") if path.name.endswith(SUFFIXES)]
        for path in paths:
            self._files[module_name(path)] = path
        self._builtin: set[str] = set()
        builtin = folder / "modules.builtin"
        if builtin.exists():
            self._builtin = {module_name(Path(line)) for line in read_text(builtin).split()}

    def has(self, name: str) -> bool:
        return name in self._files

    def is_builtin(self, name: str) -> bool:
        return name in self._builtin

    def load_order(self, wanted: list[str]) -> list[tuple[str, bytes]]:
        """Return `wanted` and their dependencies in load order as (name, contents), without built-in ones.

        Raises ConfigError for one that is neither there nor built in.
        """
        order: dict[str, bytes] = {}

        def visit(name: str, needed_by: tuple[str, ...]) -> None:
            if name in order or name in needed_by or self.is_builtin(name):
                return
            path = self._files.get(name)
            if path is None:
                by = f" (needed by {needed_by[-1]})" if needed_by else ""
                raise ConfigError(
                    f"{self.folder}: no module {name}{by}; is it enabled in the kernel's configuration?"
                )
            if len(needed_by) >= CHAIN_LIMIT:
                raise ConfigError(
                    f"{path}: the last of {CHAIN_LIMIT} modules that each need the next; build it again"
                )
            data = read_module(path)
            try:
                needs = depends(data)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
            for need in needs:
                visit(need, (*needed_by, name))
            order[name] = data

        for name in wanted:
            visit(name.replace("-", "_"), ())
        return list(order.items())


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
    for line in modinfo(module):
        key, _, value = line.partition("=")
        if key == "depends":
            return [name.replace("-", "_") for name in value.split(",") if name]
    return []


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
