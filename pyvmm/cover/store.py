"""Finds a module's file and returns its Program, from the cache if the same build was analysed before.

CACHE/cover/BUILD-ID.json
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from pyvmm.cache import disk_errors, mark_used, prune
from pyvmm.client.gdb import find_vmlinux
from pyvmm.cover.program import Program
from pyvmm.errors import ConfigError
from pyvmm.files import FileError, read_text
from pyvmm.images.modules import ModuleTree, is_file_name, module_name, read_module
from pyvmm.paths import cache_folder, make_folder, write_private

PROGRAM_LIMIT: Final = 256 << 20
CACHE_LIMIT: Final = 128 << 20
CACHE_SECONDS: Final = 30 * 86400.0
BUILT_IN: Final = ("hv_vmbus",)
"""Modules that are looked for in the vmlinux, too: `pyvmm.cover.builtin` knows their functions' names."""
_NOTE: Final = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"  # name of 4 bytes, build id of 20, NT_GNU_BUILD_ID
_UP_FROM_BZIMAGE: Final = 4  # arch/x86/boot/bzImage

Progress = Callable[[str], None]


def load_program(path: Path, progress: Progress = lambda text: None, name: str = "") -> Program:
    """Return the blocks of the module in a file; of `name` if it is a vmlinux. Raises ConfigError and HostError."""
    if name and module_name(path) != name:
        return _load_builtin(path, name, progress)
    data = read_module(path)
    name = module_name(path)
    found = cached(build_id(data))
    if found is not None:
        found.name = name
        return found
    from pyvmm.cover.descent import analyse
    from pyvmm.cover.elf import module_image

    progress(f"disassembling {name}")
    program = analyse(module_image(data, str(path), name))
    save(program)
    return program


def _load_builtin(path: Path, name: str, progress: Progress) -> Program:
    from pyvmm.cover.builtin import identity, load_builtin

    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        build = build_id(data)
    found = cached(identity(build, name))
    if found is not None:
        return found
    from pyvmm.cover.descent import analyse

    progress(f"finding {name} in {path.name}")
    program = analyse(load_builtin(path, name, build))
    save(program)
    return program


def build_id(data: bytes | mmap.mmap) -> str:
    """Return a file's build id in hexadecimal digits; without one, its contents' digest."""
    at = data.find(_NOTE)
    if at >= 0 and len(data) >= at + len(_NOTE) + 20:
        return data[at + len(_NOTE) :][:20].hex()
    return hashlib.sha1(data).hexdigest()


def cached(build: str) -> Program | None:
    """Return an earlier analysis; None if there is none."""
    path = _place(build)
    try:
        found = Program.from_json(read_text(path, PROGRAM_LIMIT), lambda: _read_listing(build))
    except FileError:
        return None
    mark_used(path)
    return found if found is not None and found.build_id == build else None


def save(program: Program) -> None:
    """Keep an analysis in the cache. Raises HostError if the disk refuses."""
    with disk_errors(f"cannot keep the blocks of {program.name}"):
        folder = cache_folder("cover")
        make_folder(folder)
        blocks, listing = program.to_json()
        write_private(_place(program.build_id, "text"), listing.encode())
        write_private(_place(program.build_id), blocks.encode())
        prune(folder, CACHE_SECONDS, CACHE_LIMIT, ())


def _read_listing(build: str) -> str:
    try:
        return read_text(_place(build, "text"), PROGRAM_LIMIT)
    except FileError:  # removed meanwhile: a report shows the blocks without their instructions
        return ""


def _place(build: str, kind: str = "json") -> Path:
    if not build or not all(digit in "0123456789abcdef" for digit in build):
        raise ConfigError(f"{build!r} is no build id")
    return cache_folder("cover", f"{build}.{kind}")


def find_program(
    wanted: str, kernel: Path, folder: Path | None = None, progress: Progress = lambda text: None
) -> Program:
    """Return the blocks of a module that `find_module` finds. Raises ConfigError and HostError."""
    path = find_module(wanted, kernel, folder)
    return load_program(path, progress, "" if is_file_name(wanted) else wanted.replace("-", "_"))


def find_module(wanted: str, kernel: Path, folder: Path | None = None) -> Path:
    """Return the file of a module: `wanted` itself if it is a path, else searched for by name in `folder`, or around
    the guest's kernel: the image's modules, its build tree, the package's /lib/modules. One that is built in is in
    the vmlinux. Raises ConfigError.
    """
    if is_file_name(wanted):
        path = Path(wanted)
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        return path
    name = wanted.replace("-", "_")
    places = [folder] if folder is not None else list(_places(kernel))
    for place in places:
        with suppress(OSError):
            if place.is_dir():
                found = next(
                    (place / f"{name}{suffix}" for suffix in (".ko",) if (place / f"{name}.ko").is_file()), None
                )
                found = found or ModuleTree(place).find(name)
                if found is not None:
                    return found
    if name in BUILT_IN and folder is None and (vmlinux := find_vmlinux(kernel)) is not None:
        return vmlinux
    where = f"in {folder}" if folder is not None else f"around {kernel}"
    if close := get_close_matches(name, _names(places), 1):
        raise ConfigError(f"no module {name} {where}: did you mean {close[0]}?")
    raise ConfigError(f"no file of the module {name} {where}: name it (PATH/{name}.ko), or a folder by --modules")


def _names(places: Sequence[Path]) -> list[str]:
    """Return the names of modules that can be meant, for the one that is not there."""
    names = {*BUILT_IN}
    for place in places:
        with suppress(OSError):
            names |= {module_name(path) for path in place.iterdir() if ".ko" in path.name}
            names |= set(ModuleTree(place).names())
    return sorted(names)


def _places(kernel: Path) -> list[Path]:
    parents = list(kernel.parents)
    found = [kernel.parent / "modules"]
    for up in (1, _UP_FROM_BZIMAGE):
        if len(parents) >= up and (parents[up - 1] / "modules.order").exists():
            found.append(parents[up - 1])
    for root in parents[1:3]:
        for tree in (*sorted(root.glob("lib/modules/*")), *sorted(root.glob("usr/lib/modules/*"))):
            found.append(tree)
    return found
