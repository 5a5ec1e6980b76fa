"""What a report knows of a module beside its blocks: which cannot run, and what its functions are for.

    [[unreachable]]                            # a TOML file
    module = "hv_balloon"                      # of any module without it
    kernel = "6.12"                            # of any kernel without it
    at = ["hv_free_page_report+0x85"]          # blocks, as a report names them; all that match without it
    has = "jmp"                                # a regular expression for one of the block's instructions
    why = "free page reporting passes one range at least"

    [[part]]
    module = "hv_vmbus"
    name = "sysfs"
    functions = ["*_show", "*_store"]          # shell wildcards; the part without them has the rest

A block that is named and is not there, or has other instructions, is an error of the file: the kernel is another.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pyvmm.cover.program import Program
from pyvmm.files import FileError, read_text

RULES_LIMIT: Final = 1 << 20
_ALLOWED: Final[dict[str, dict[str, type]]] = {
    "unreachable": {"module": str, "kernel": str, "at": list, "has": str, "why": str},
    "part": {"module": str, "name": str, "functions": list},
}
_NEEDED: Final = {"unreachable": ("why",), "part": ("module", "name")}


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Blocks that cannot run, and why."""

    why: str
    module: str = ""
    kernel: str = ""
    at: tuple[str, ...] = ()
    has: str = ""

    def is_of(self, program: Program, kernel: str) -> bool:
        """Return whether it is about this module of this kernel."""
        return self.module in ("", program.name) and (not self.kernel or kernel.startswith(f"{self.kernel}."))


@dataclass(frozen=True, slots=True)
class Part:
    """Functions of a module that serve one purpose; the rest of them without `functions`."""

    module: str
    name: str
    functions: tuple[str, ...] = ()


@dataclass(slots=True)
class Rules:
    """The contents of a file of rules."""

    unreachable: list[Unreachable] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def reasons(self, program: Program, kernel: str) -> tuple[dict[int, str], list[str]]:
        """Return why blocks cannot run, by their number, and what the rules name that is not there."""
        rules = [each for each in self.unreachable if each.is_of(program, kernel)]
        if not rules:
            return {}, []
        labels = {program.label(block): number for number, block in enumerate(program.blocks)}
        listing = program.listing() if any(each.has for each in rules) else []
        reasons: dict[int, str] = {}
        wrong: list[str] = []
        for rule in rules:
            for label in rule.at:
                if label not in labels:
                    wrong.append(f"{program.name} has no block {label}")
            for number in [labels[label] for label in rule.at if label in labels] if rule.at else range(len(labels)):
                if not rule.has or any(re.search(rule.has, text) for _, _, text in listing[number]):
                    reasons[number] = rule.why
                elif rule.at:
                    wrong.append(f"{program.label(program.blocks[number])} of {program.name} has no {rule.has!r}")
        return reasons, wrong

    def part(self, module: str, function: str) -> str:
        """Return the part that a function belongs to; "" if the rules name none."""
        name = function.partition(".")[0]
        parts = [each for each in self.parts if each.module == module]
        for each in parts:
            if any(fnmatchcase(name, pattern) for pattern in each.functions):
                return each.name
        return next((each.name for each in parts if not each.functions), "")


def read_rules(path: Path) -> Rules:
    """Read a file of rules. Raises FileError."""
    return parse_rules(read_text(path, RULES_LIMIT), str(path))


def parse_rules(text: str, where: str) -> Rules:
    """Return the rules in a text. Raises FileError."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(f"{where}: not TOML: {error}") from None
    rules = Rules()
    for name, rows in tables.items():
        if name not in _ALLOWED or not isinstance(rows, list):
            raise FileError(f"{where}: {name!r} is no table of rules: [[unreachable]] and [[part]] are")
        for number, row in enumerate(rows, 1):
            facts = _checked(name, row, f"{where}: [[{name}]] number {number}")
            if name == "unreachable":
                rules.unreachable.append(Unreachable(**facts))
            else:
                rules.parts.append(Part(**facts))
    return rules


def _checked(table: str, row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise FileError(f"{where}: not a table")
    facts: dict[str, Any] = {}
    for key, value in row.items():
        kind = _ALLOWED[table].get(key)
        if kind is None:
            raise FileError(f"{where}: {key!r} is not known: {', '.join(_ALLOWED[table])} are")
        if not isinstance(value, kind) or (isinstance(value, list) and not all(type(each) is str for each in value)):
            raise FileError(f"{where}: {key!r} is {'a list of texts' if kind is list else 'a text'}")
        facts[key] = tuple(value) if isinstance(value, list) else value
    for key in _NEEDED[table]:
        if not facts.get(key):
            raise FileError(f"{where}: {key!r} is missing")
    if table == "unreachable" and not facts.get("at") and not facts.get("has"):
        raise FileError(f"{where}: it names no blocks, by 'at' or 'has'")
    try:
        re.compile(facts.get("has", ""))
    except (re.error, RecursionError, OverflowError) as error:
        raise FileError(f"{where}: 'has' is no regular expression: {error}") from None
    return facts
