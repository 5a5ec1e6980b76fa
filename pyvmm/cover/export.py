"""Coverage in the forms that other programs read: lcov's tracefile, DynamoRIO's drcov.

lcov (genhtml, editors) counts source lines, so the module's file must have debug information. drcov (Lighthouse for
IDA and Binary Ninja, Cartographer and lightkeeper for Ghidra) counts blocks by their offset in the module: here the
offset in the module's file, since a module's sections have no addresses of their own.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from pyvmm.cover.figures import COVERED, Figures
from pyvmm.cover.lines import Line, Lines
from pyvmm.errors import ConfigError

_BLOCK: Final = struct.Struct("<IHH")  # offset, bytes, number of the module


def lcov(figures: Sequence[tuple[Figures, Lines]]) -> str:
    """Return lcov's tracefile. A line ran if one of its blocks did. Raises ConfigError without debug information."""
    hits: dict[str, dict[int, int]] = defaultdict(dict)
    functions: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for each, lines in figures:
        if not lines:
            name = each.program.name
            tree = "a built tree has some (--modules, in tests --pyvmm-kdir)"
            raise ConfigError(f"lcov: the file of {name} has no debug information: {tree}")
        _count(each, lines, hits, functions)
    text = []
    for file in sorted(hits):
        text += ["TN:", f"SF:{file}"]
        text += [f"FN:{line},{name}" for line, name, _ in functions[file]]
        text += [f"FNDA:{ran},{name}" for _, name, ran in functions[file]]
        text += [f"FNF:{len(functions[file])}", f"FNH:{sum(bool(ran) for *_, ran in functions[file])}"]
        text += [f"DA:{line},{hits[file][line]}" for line in sorted(hits[file])]
        text += [f"LF:{len(hits[file])}", f"LH:{sum(map(bool, hits[file].values()))}", "end_of_record"]
    return "\n".join(text) + "\n"


def _count(
    figures: Figures, lines: Lines, hits: dict[str, dict[int, int]], functions: dict[str, list[tuple[int, str, int]]]
) -> None:
    program = figures.program
    for function in figures.functions:
        place = program.functions.get(function.name)
        start = lines.of_function(place[0], place[1]) if place is not None else None
        if start is not None:
            functions[start.file].append((start.line, function.name, int(function.covered > 0)))
        for number in function.blocks:
            state = figures.states[number]
            if state != "blind":
                for line in block_lines(figures, lines, number):
                    known = hits[line.file].get(line.line, 0)
                    hits[line.file][line.line] = max(known, int(state in COVERED))


def block_lines(figures: Figures, lines: Lines, number: int) -> set[Line]:
    """Return the source lines of a block."""
    block = figures.program.blocks[number]
    return {line for line in lines.within(block.section, block.offset, block.size) if line.line}


def drcov(figures: Sequence[Figures], version: str) -> bytes:
    """Return a drcov file, version 2, with the blocks that ran."""
    rows, table = [], b""
    for number, each in enumerate(figures):
        program = each.program
        end = max((program.file_offsets[b.section] + b.offset + b.size for b in program.blocks), default=0)
        rows.append(f"{number:3}, 0x0, {end:#x}, 0x0, 0x0, 0x0, {program.name}.ko")
        for index, block in enumerate(program.blocks):
            if each.states[index] in COVERED:
                table += _BLOCK.pack(program.file_offsets[block.section] + block.offset, block.size, number)
    head = [
        "DRCOV VERSION: 2",
        f"DRCOV FLAVOR: {version}",
        f"Module Table: version 2, count {len(rows)}",
        "Columns: id, base, end, entry, checksum, timestamp, path",
        *rows,
        f"BB Table: {len(table) // _BLOCK.size} bbs",
    ]
    return ("\n".join(head) + "\n").encode() + table


def counts(figures: Figures) -> dict[str, int]:
    """Return the number of blocks in each state, for JSON."""
    return dict(Counter(figures.states[n] for each in figures.functions for n in each.blocks))
