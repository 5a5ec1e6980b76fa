"""Figures of a module's coverage: each block's state, and counts by function.

seen        its breakpoint was hit
inferred    it has no place for one, and a block that only it leads to was hit
loading     .init.text: it ran when the module was loaded
missed      its breakpoint was never hit; some of these cannot be hit, as the rules say (`rules`)
blind       nothing tells: no place for a breakpoint, or none could be set. Not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyvmm.cover.program import Block, Program
from pyvmm.cover.record import Seen
from pyvmm.cover.rules import Rules

Status = Literal["seen", "inferred", "loading", "missed", "blind"]
COVERED = frozenset(("seen", "inferred", "loading"))


@dataclass(slots=True)
class Function:
    """One function with its unlikely part: the numbers of its blocks, of those that count, and of those that ran."""

    name: str
    blocks: list[int]
    counted: int = 0
    covered: int = 0

    @property
    def percent(self) -> float:
        return 100 * self.covered / self.counted if self.counted else 100.0


@dataclass(slots=True)
class Reached:
    """Of the blocks that can be reached, how many there are and how many ran."""

    reachable: int = 0
    covered: int = 0

    @property
    def percent(self) -> float:
        return 100 * self.covered / self.reachable if self.reachable else 100.0


class Figures:
    """A module's coverage. `glue`: whether the tracepoints' functions count too. `reasons`: why blocks that did not
    run cannot; `wrong`: what the rules say of blocks that are not there, or that ran all the same.
    """

    def __init__(self, program: Program, seen: Seen, *, glue: bool = False, rules: Rules | None = None) -> None:
        self.program = program
        self.seen = seen
        self.glue = glue
        self.rules = rules
        self.states: list[Status] = [self._state(n, block) for n, block in enumerate(self.program.blocks)]
        kinds = ("code", "init", "tracing") if self.glue else ("code", "init")
        by_name: dict[str, Function] = {}
        for number, block in enumerate(self.program.blocks):
            if block.kind not in kinds:
                continue
            function = by_name.setdefault(block.function, Function(block.function, []))
            function.blocks.append(number)
            if self.states[number] != "blind":
                function.counted += 1
                function.covered += self.states[number] in COVERED
        reasons, self.wrong = rules.reasons(program, seen.kernel) if rules is not None else ({}, [])
        self.reasons = {number: why for number, why in reasons.items() if self.states[number] == "missed"}
        for number in reasons:
            if self.states[number] == "seen":
                self.wrong.append(f"{program.label(program.blocks[number])} ran: the rules say that it cannot")
        self.functions = sorted(by_name.values(), key=lambda each: (-len(each.blocks), each.name))

    def _state(self, number: int, block: Block) -> Status:
        if number in self.seen.seen:
            return "seen"
        if block.kind == "init":
            return "loading"
        if number in self.seen.placed:
            return "missed"
        if any(other in self.seen.seen for other in block.evidence):
            return "inferred"
        if block.evidence and all(other in self.seen.placed for other in block.evidence):
            return "missed"
        return "blind"

    @property
    def counted(self) -> int:
        """Return the number of blocks that count."""
        return sum(each.counted for each in self.functions)

    @property
    def covered(self) -> int:
        """Return how many of them ran."""
        return sum(each.covered for each in self.functions)

    @property
    def percent(self) -> float:
        return 100 * self.covered / self.counted if self.counted else 100.0

    def reached(self, function: str = "") -> Reached:
        """Return how many of the reachable blocks ran: of the module, or of one function."""
        found = Reached()
        for each in self.functions:
            if not function or each.name == function:
                found.reachable += each.counted - sum(number in self.reasons for number in each.blocks)
                found.covered += each.covered
        return found

    def parts(self) -> dict[str, Reached]:
        """Return the same by the parts that the rules name."""
        found: dict[str, Reached] = {}
        for each in self.functions:
            name = self.rules.part(self.program.name, each.name) if self.rules is not None else ""
            if name:
                one, total = self.reached(each.name), found.setdefault(name, Reached())
                total.reachable += one.reachable
                total.covered += one.covered
        return found

    def count(self, state: Status) -> int:
        """Return the number of blocks in a state, of those that the functions have."""
        return sum(self.states[number] == state for each in self.functions for number in each.blocks)

    def missed(self) -> list[int]:
        """Return the blocks that did not run and could have, by function and address."""
        return [
            n for each in self.functions for n in each.blocks if self.states[n] == "missed" and n not in self.reasons
        ]

    def unreachable(self) -> list[int]:
        """Return the blocks that cannot run, by function and address."""
        return [n for each in self.functions for n in each.blocks if n in self.reasons]

    def describe(self, number: int) -> str:
        """Return how a block is reached: `hot_add_req+0x1f0, after the call of add_memory at +0x1d8`."""
        program, block = self.program, self.program.blocks[number]
        before = [n for n, other in enumerate(program.blocks) if number in other.next]
        text = program.label(block)
        for other in sorted(before, key=lambda n: abs(program.blocks[n].offset - block.offset)):
            calls = [call for call in program.calls if call.block == other]
            if calls:
                return f"{text}, behind the call of {calls[-1].callee} in {program.label(program.blocks[other])}"
        if before:
            return f"{text}, from {program.label(program.blocks[before[0]])}"
        return text
