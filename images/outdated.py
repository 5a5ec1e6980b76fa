"""Finds what of a kernel build tree is older than its sources: a `make` that was forgotten.

Source: Linux scripts/basic/fixdep.c.

For each object DIR/NAME.o, kbuild keeps in DIR/.NAME.o.cmd which sources and headers it was compiled from:

    source_drivers/hv/hv_balloon.o := drivers/hv/hv_balloon.c
    deps_drivers/hv/hv_balloon.o := \\
        $(wildcard include/config/MEMORY_HOTPLUG) \\
      include/linux/kernel.h \\

A relative path starts in the folder that the object's name starts in: the tree's top, or for `make M=DIR` since
Linux 6.13 DIR. `make` compiles an object again if one of the files is newer, and this module looks for the same.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from pyvmm.files import FileError, read_text

NAMES = 3
"""Most files that a note names."""

OBJECTS = 200
"""Most objects of a folder that are looked at: drivers/hv has 12, each with some 600 headers."""

COMMAND_LIMIT = 1 << 20
"""Largest .cmd file in bytes; that of an object in drivers/hv has 60 KiB."""

_SOURCE = re.compile(r"^source_(\S+\.o) := (\S+)$", re.MULTILINE)
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")
_DEPENDENCY = re.compile(r"\n  ([^\s$]+)")


def module_notes(module: Path) -> list[str]:
    """Return a note if a module in a build tree is older than its sources."""
    folder = module.absolute().parent
    for tree in folder.parents:
        if (tree / "include/config").is_dir():
            return outdated_notes(tree, [str(folder.relative_to(tree))], [module.name.partition(".")[0]])
    return []


def outdated_notes(tree: Path, places: list[str], modules: list[str]) -> list[str]:
    """Return a note for each of `places`, folders of a build tree, in which something is older than its sources.

    `modules` are those whose .ko is compared with their object too.
    """
    times: dict[str, int] = {}
    tops = [f"{os.path.realpath(each)}/" for each in (tree, tree / "source")]
    notes = []
    for place in places:
        newer = {_shown(path, tops) for path in _newer_files(tree / place, times)}
        for name in modules:
            made = tree / place / f"{name}.ko"
            if 0 < _time(str(made), times) < _time(f"{made.parent}/{name}.o", times):
                newer.add(f"{place}/{name}.o")
        if newer:
            names = ", ".join(sorted(newer)[:NAMES])
            names += f" and {len(newer) - NAMES} more" if len(newer) > NAMES else ""
            quick = module_make(tree, place)
            notes.append(f"{names} changed since the last build: run `make -C {tree}`, for modules `make {quick}`")
    return notes


def module_make(tree: Path, place: str) -> str:
    """Return the arguments of `make` that build the modules of one folder.

    In a folder of `make O=`, M=DIR finds no sources; Linux 6.13 has MO= for the output.
    """
    if not (tree / "source").is_dir():
        return f"M={place}"
    found = None
    with suppress(FileError):
        found = _VERSION.match(read_text(tree / "include/config/kernel.release"))
    if found and (int(found[1]), int(found[2])) >= (6, 13):
        return f"M=source/{place} MO={place}"
    return "modules"


def _newer_files(folder: Path, times: dict[str, int]) -> set[str]:
    """Return the sources and headers that are newer than an object in `folder` which was made of them."""
    newer = set()
    for name in _objects(folder):
        made = _time(f"{folder}/{name}", times)
        try:
            text = read_text(folder / f".{name}.cmd", COMMAND_LIMIT)
        except FileError:
            continue
        for path in sources(text, str(folder), name):
            if 0 < made < _time(path, times):
                newer.add(path)
    return newer


def sources(command: str, folder: str, name: str) -> list[str]:
    """Return the files that a .cmd file lists for the object `name` in `folder`; none if it was not compiled."""
    found = _SOURCE.search(command)
    if found is None:
        return []
    start = f"{folder}/{name}".removesuffix(found[1])
    paths = [found[2], *_DEPENDENCY.findall(command)]
    return [path if path[0] == "/" else start + path for path in paths]


def _objects(folder: Path) -> list[str]:
    """Return the names of the objects in a folder that have a .cmd file, without modpost's own."""
    with suppress(OSError), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".o.cmd"))
        return [name[1:-4] for name in names if not name.endswith(".mod.o.cmd")][:OBJECTS]
    return []


def _time(path: str, times: dict[str, int]) -> int:
    """Return when a file was changed, in nanoseconds; 0 for one that is not there."""
    if path not in times:
        times[path] = 0
        with suppress(OSError, ValueError):
            times[path] = os.stat(path).st_mtime_ns
    return times[path]


def _shown(path: str, tops: list[str]) -> str:
    """Return a path without the tree's top, or its sources'."""
    real = os.path.realpath(path)
    return next((real.removeprefix(top) for top in tops if real.startswith(top)), path)
