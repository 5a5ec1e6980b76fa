"""Source lines of a module's code, from the debug information in its file (DWARF): of a build tree, not a package's.

In a relocatable file every section begins at address 0, so the line program's addresses are relocated here to
(section, offset), which pyelftools' own relocation would lose.
"""

from __future__ import annotations

import io
import posixpath
import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvmm.cover.tools import load
from pyvmm.images.modules import read_module

_SHIFT: Final = 48  # a section's number lies above the offset in it
_ADDRESS, _OFFSET_32, _SIGNED_32 = 1, 10, 11  # R_X86_64_64, 32, 32S


class Line(NamedTuple):
    """A line of a source file."""

    file: str
    line: int


@dataclass(slots=True)
class Lines:
    """Lines by place. Falsy if the file has no debug information.

    An address may have several lines: `lines` has the last, whose code it is, `first` the first of the source file
    itself, not of a header: a function's own where its code begins with that of an inlined one.
    """

    starts: list[int]
    lines: list[Line | None]
    first: list[Line | None]

    def __bool__(self) -> bool:
        return bool(self.starts)

    def at(self, section: int, offset: int) -> Line | None:
        """Return the line of the instruction at an offset in a section."""
        address = section << _SHIFT | offset
        index = bisect_right(self.starts, address) - 1
        return self.lines[index] if index >= 0 and self.starts[index] >> _SHIFT == section else None

    def of_function(self, section: int, offset: int) -> Line | None:
        """Return the line of the function that begins at an offset in a section."""
        address = section << _SHIFT | offset
        index = bisect_right(self.starts, address) - 1
        return self.first[index] if index >= 0 and self.starts[index] == address else self.at(section, offset)

    def within(self, section: int, offset: int, size: int) -> set[Line]:
        """Return the lines of `size` bytes."""
        low, high = section << _SHIFT | offset, section << _SHIFT | offset + size
        first, last = bisect_right(self.starts, low) - 1, bisect_right(self.starts, high - 1)
        found = self.lines[max(0, first) : last]
        return {each for each in found if each is not None}


NO_LINES: Final = Lines([], [], [])


def read_lines(path: Path) -> Lines:
    """Return the lines in a module's file. Raises ConfigError for another file."""
    elf = load("elftools.elf.elffile").ELFFile(io.BytesIO(read_module(path)))
    if elf.get_section_by_name(".debug_line") is None:
        return NO_LINES
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=True)
    stream = dwarf.debug_line_sec.stream
    stream.seek(0)
    relocated = _relocate(elf, bytearray(stream.read()))
    dwarf.debug_line_sec = dwarf.debug_line_sec._replace(stream=io.BytesIO(bytes(relocated)))
    rows: dict[int, Line | None] = {}
    first: dict[int, Line | None] = {}
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        found = unit.get_top_DIE().attributes
        folder, name = (
            _text(found[each].value) if each in found else "" for each in ("DW_AT_comp_dir", "DW_AT_name")
        )
        if program is not None:
            source = posixpath.normpath(posixpath.join(folder, name))
            _add_rows(program, folder, source, rows, first)
    starts = sorted(rows)
    return Lines(starts, [rows[each] for each in starts], [first[each] for each in starts])


def _relocate(elf: Any, data: bytearray) -> bytearray:
    """Set the addresses of code in .debug_line to section and offset."""
    relocations = elf.get_section_by_name(".rela.debug_line")
    symbols = elf.get_section_by_name(".symtab")
    for each in relocations.iter_relocations() if relocations is not None else ():
        symbol = symbols.get_symbol(each["r_info_sym"])
        section = symbol["st_shndx"]
        if each["r_info_type"] == _ADDRESS and isinstance(section, int):
            value = (section << _SHIFT) + symbol["st_value"] + each["r_addend"]
            struct.pack_into("<Q", data, each["r_offset"], value)
    return data


def _add_rows(
    program: Any, folder: str, source: str, rows: dict[int, Line | None], first: dict[int, Line | None]
) -> None:
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if state.end_sequence:
            rows.setdefault(state.address, None)
            first.setdefault(state.address, None)
            continue
        line = rows[state.address] = Line(_file(program, state.file, folder), state.line)
        known = first.get(state.address)  # None also at the end of what lies before
        if known is None or (known.file != source and line.file == source):
            first[state.address] = line


def _file(program: Any, number: int, folder: str) -> str:
    """Return a file's path. Numbers are from 1 before DWARF 5, and so are folders, with 0 for the compiler's own."""
    header = program.header
    new = header["version"] >= 5
    try:
        entry = header["file_entry"][number if new else number - 1]
        folders = header["include_directory"]
        index = entry["dir_index"]
        place = folders[index] if new else (folders[index - 1] if index else b"")
    except (IndexError, KeyError):
        return "?"
    text = posixpath.join(folder, _text(place), _text(entry["name"]))
    return posixpath.normpath(text)


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
