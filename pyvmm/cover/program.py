"""A module's blocks, where each may carry a breakpoint, and its calls: what is kept of the disassembly.

A block is a run of instructions that is entered only at its first and left only behind its last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple

from pyvmm.cover.image import Loading, Place
from pyvmm.files import parse_json, parse_object

FORMAT: Final = 5  # increment when the analysis of the same file changes

Kind = Literal["code", "tracing", "init", "load"]
"""code; glue of tracepoints, which runs only with them; .init.text, over before a breakpoint can be set; what runs
only while the module is loaded, and is counted nowhere (.altinstr_aux)."""


class Instruction(NamedTuple):
    """One instruction: its offset in the block's section, bytes, and text with the names of symbols."""

    offset: int
    size: int
    text: str


class Candidate(NamedTuple):
    """Where a block's breakpoint may go: the offset of an instruction, and the bytes there, "" if loading changes
    them; `whole`: both bytes are of this instruction."""

    offset: int
    expected: str
    whole: bool


@dataclass(slots=True)
class Block:
    """One block. `evidence`: of one without a place for a breakpoint, the blocks whose hits tell that it ran."""

    function: str
    kind: Kind
    section: int
    offset: int
    size: int
    next: list[int]
    candidates: list[Candidate]
    evidence: list[int]
    why_none: str

    @property
    def place(self) -> Place:
        return Place(self.section, self.offset)


@dataclass(slots=True)
class Call:
    """A call of five bytes that nothing rewrites; `function` has its cold parts' calls too."""

    function: str
    callee: str
    section: int
    offset: int
    block: int


@dataclass(slots=True)
class Program:
    """A module's blocks by section and offset, its functions (name to place and size), and its calls."""

    name: str
    build_id: str
    sections: dict[int, str]
    base: dict[int, int]
    file_offsets: dict[int, int]
    functions: dict[str, tuple[int, int, int]]
    blocks: list[Block]
    calls: list[Call]
    builtin: bool = False
    exits: list[str] = field(default_factory=list)  # the function that runs when the module is unloaded
    loading: Loading | None = None
    listing: Callable[[], list[list[Instruction]]] = field(default=list, compare=False)
    """Returns each block's instructions, for reports: most of what is kept, and read only then."""

    @property
    def counted(self) -> list[int]:
        """Return the numbers of the blocks that a report counts: without tracing glue and what runs while loading."""
        return [n for n, block in enumerate(self.blocks) if block.kind in ("code", "init")]

    def label(self, block: Block) -> str:
        """Return a block's address as `function+0x12`."""
        return self.where(block.section, block.offset, block.function)

    def where(self, section: int, offset: int, function: str) -> str:
        """Return an address as `function+0x12`, or `function.cold+0x3`."""
        for name in (function, *(f"{function}.cold{more}" for more in ("", ".0", ".1"))):
            at, start, size = self.functions.get(name, (-1, 0, 0))
            if at == section and start <= offset < start + size:
                return f"{name}+{offset - start:#x}" if offset > start else name
        return f"{self.sections.get(section, '?')}+{offset:#x}"

    def to_json(self) -> tuple[str, str]:
        """Return the program for the cache: without the instructions, and these."""
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "listing"}
        rows = {name: [_row(one) for one in facts[name]] for name in ("blocks", "calls")}
        return json.dumps({"format": FORMAT} | facts | rows), json.dumps(self.listing())

    @classmethod
    def from_json(cls, text: str, listing: Callable[[], str]) -> Program | None:
        """Return a program from the cache; None if it is of another version, or damaged. `listing` reads its
        instructions.
        """
        try:
            facts = parse_object(text, {"format": int, "name": str, "build_id": str, "blocks": list, "calls": list})
            if facts.pop("format") != FORMAT:
                return None
            return _restored(facts, listing)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None


def _row(item: Block | Call) -> list[Any]:
    return [getattr(item, each.name) for each in fields(item)]


def _restored(facts: dict[str, Any], listing: Callable[[], str]) -> Program:
    blocks = [Block(*row) for row in facts["blocks"]]
    for block in blocks:
        block.candidates = [Candidate(*one) for one in block.candidates]
    by_section = ("sections", "base", "file_offsets")
    made: dict[str, Any] = {name: {int(key): value for key, value in facts[name].items()} for name in by_section}
    made["functions"] = {name: (at[0], at[1], at[2]) for name, at in facts["functions"].items()}
    if facts["loading"] is not None:
        name_at, size, by_number = facts["loading"]
        made["loading"] = Loading(name_at, size, {int(key): int(value) for key, value in by_number.items()})
    made |= {"blocks": blocks, "calls": [Call(*row) for row in facts["calls"]]}
    return Program(**facts | made, listing=lambda: _instructions(listing(), len(blocks)))


def _instructions(text: str, blocks: int) -> list[list[Instruction]]:
    """Return the instructions; none if they are damaged."""
    try:
        found = [[Instruction(*one) for one in block] for block in parse_json(text)]
    except (ValueError, TypeError):
        found = []
    return found if len(found) == blocks else [[] for _ in range(blocks)]
