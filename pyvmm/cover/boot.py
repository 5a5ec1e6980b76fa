"""Coverage from a module's first instruction on: where the kernel is about to run a module's init function.

load_module() calls do_init_module() once a module is in memory as it will run, relocated and patched. The calls are
found in the kernel's own image by its table of symbols, which takes a second, in an emulated host ten: the places are
kept.

CACHE/cover/SIZE-TIME.calls
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvmm.cover.guest import Layout
from pyvmm.cover.program import Program
from pyvmm.cover.store import Progress, find_program
from pyvmm.errors import ConfigError
from pyvmm.files import FileError, parse_json, read_file, read_text
from pyvmm.firmware import elf
from pyvmm.kallsyms import NoSymbolsError, read_kallsyms
from pyvmm.machine.arrivals import Arrival
from pyvmm.machine.watched import Site
from pyvmm.paths import cache_folder, make_folder, write_private

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
VMLINUX_LIMIT: Final = 2 << 30
_SMALL: Final = 1 << 16
_CALLED: Final = "do_init_module"
_ANCHOR: Final = 1 << 32  # any address that is not 0, of a page's start
_CALL: Final = re.compile(rb"[\xe8\xe9]", re.DOTALL)  # or a jump: the call is load_module()'s last


def find_calls(kernel: Path) -> list[int]:
    """Return the addresses at which a kernel calls do_init_module(). Raises ConfigError for one that is packed, or
    has no symbols.
    """
    try:
        status = kernel.stat()
    except OSError as error:
        raise ConfigError(f"{kernel}: {error.strerror}") from None
    place = cache_folder("cover", f"{status.st_size:x}-{status.st_mtime_ns:x}.calls")
    try:
        found = parse_json(read_text(place, _SMALL))
        if isinstance(found, list) and found and all(type(each) is int for each in found):
            return found
    except (FileError, ValueError):
        pass
    calls = _search(read_file(kernel, VMLINUX_LIMIT), kernel.name)
    make_folder(place.parent)
    write_private(place, json.dumps(calls).encode())
    return calls


def _search(data: bytes, name: str) -> list[int]:
    segments = elf.parse(data, name).segments

    def virtual(at: int) -> int:
        segment = next(each for each in segments if each.offset <= at < each.offset + each.file_size)
        return KERNEL_MAP + segment.gpa + at - segment.offset

    try:
        tables = read_kallsyms(data, virtual)
    except NoSymbolsError as error:
        raise ConfigError(f"{name}: {error}") from None
    called = dict(zip(tables.names, tables.addresses, strict=True)).get(_CALLED)
    if called is None:
        raise ConfigError(f"{name}: it has no {_CALLED}: built without modules?")
    calls = []
    for segment in segments:
        start = KERNEL_MAP + segment.gpa
        code = data[segment.offset : segment.offset + segment.file_size]
        for match in _CALL.finditer(code):
            at = match.start()
            target = start + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
            if target == called:
                calls.append(start + at)
    if not calls:
        raise ConfigError(f"{name}: nothing in it calls {_CALLED}")
    return calls


def prepare(names: Sequence[str], kernel: Path, progress: Progress) -> None:
    """Analyse the modules that shall be covered as the guest loads them: in an emulated host that would take minutes.

    Raises ConfigError for those that cannot be.
    """
    for name in names:
        program = find_program(name, kernel, None, progress)
        if program.loading is None:
            later = f"`pyvmm cover VM {program.name}` covers it once the guest runs"
            raise ConfigError(f"--cover {name}: it is part of this kernel, not loaded later: {later}")
    try:
        find_calls(kernel)
    except ConfigError as error:
        later = "`pyvmm cover VM MODULE` covers a module once the guest runs"
        raise ConfigError(f"--cover needs an unpacked kernel with its symbols: {error}; {later}") from None


def arrival(program: Program) -> Arrival | None:
    """Return a module as the machine waits for it; None if it is built in."""
    if program.loading is None:
        return None
    places = {program.sections[n]: _ANCHOR + offset for n, offset in program.loading.sections.items()}
    layout = Layout(program, places)
    sites = tuple(None if each is None else Site(each[0] - _ANCHOR, each[1]) for each in layout.sites())
    exits = tuple(address - _ANCHOR for address in layout.exits())
    name_at, size, _ = program.loading
    return Arrival(program.name, program.build_id, name_at, size, sites, exits)
