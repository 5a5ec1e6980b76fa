"""What was seen of the blocks of some modules, in one run or several: kept as JSON, merged by build id.

{"format": 1, "runs": 2, "modules": [{"module": "hv_balloon", "build-id": "...", "kernel": "6.1.0-56-cloud-amd64",
 "blocks": 370, "placed": [0, 1, ...], "seen": [0, 5, ...]}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyvmm.files import FileError, parse_object, read_text

FORMAT: Final = 1
RECORD_LIMIT: Final = 64 << 20
BLOCK_LIMIT: Final = 1 << 20  # blocks of a module; the largest (amdgpu) has some 300,000
_SHAPE: Final = {"format": int, "runs": int, "modules": list}
_MODULE_SHAPE: Final = {
    "module": str, "build-id": str, "kernel": str, "blocks": int, "placed": list, "seen": list
}  # fmt: skip


@dataclass(slots=True)
class Seen:
    """One module's blocks by number: those with a breakpoint, and those that ran."""

    module: str
    build_id: str
    kernel: str
    blocks: int
    placed: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Record:
    """What one run saw, or several merged."""

    runs: int = 1
    modules: dict[str, Seen] = field(default_factory=dict)  # by build id

    def add(self, seen: Seen) -> None:
        """Merge one module's blocks."""
        known = self.modules.get(seen.build_id)
        if known is None:
            self.modules[seen.build_id] = seen
        else:
            known.placed |= seen.placed
            known.seen |= seen.seen

    def to_json(self) -> str:
        """Return the text of a file."""
        modules = [
            {
                "module": each.module,
                "build-id": each.build_id,
                "kernel": each.kernel,
                "blocks": each.blocks,
                "placed": sorted(each.placed),
                "seen": sorted(each.seen),
            }
            for each in self.modules.values()
        ]
        return json.dumps({"format": FORMAT, "runs": self.runs, "modules": modules}) + "\n"


def merged(records: Iterable[Record]) -> Record:
    """Return the sum of several records."""
    total = Record(runs=0)
    for record in records:
        total.runs += record.runs
        for each in record.modules.values():
            total.add(Seen(each.module, each.build_id, each.kernel, each.blocks, set(each.placed), set(each.seen)))
    return total


def read_record(path: Path) -> Record:
    """Read a file that `Record.to_json` has written. Raises FileError."""
    return parse_record(read_text(path, RECORD_LIMIT), str(path))


def parse_record(text: str, where: str) -> Record:
    """Return the record in `text`. Raises FileError."""
    try:
        facts = parse_object(text, _SHAPE)
        if facts["format"] != FORMAT:
            raise FileError(f"written by another version of pyvmm: format {facts['format']}")
        record = Record(runs=facts["runs"])
        for each in facts["modules"]:
            record.add(_module(each))
    except (FileError, ValueError) as error:
        raise FileError(f"{where}: no coverage of `pyvmm cover report --save`: {error}") from None
    return record


def _module(facts: Any) -> Seen:
    parsed = parse_shape(facts)
    numbers = range(parsed["blocks"])
    if not 0 <= parsed["blocks"] <= BLOCK_LIMIT:
        raise FileError(f"{parsed['blocks']} blocks")
    for name in ("placed", "seen"):
        if not all(type(number) is int and number in numbers for number in parsed[name]):
            raise FileError(f"'{name}' has something else than numbers of blocks")
    return Seen(
        parsed["module"],
        parsed["build-id"],
        parsed["kernel"],
        parsed["blocks"],
        set(parsed["placed"]),
        set(parsed["seen"]),
    )


def parse_shape(facts: Any) -> dict[str, Any]:
    """Return one module's members. Raises FileError if some are missing or of another type."""
    if not isinstance(facts, dict):
        raise FileError("a module is no object")
    for name, kind in _MODULE_SHAPE.items():
        if type(facts.get(name)) is not kind:
            raise FileError(f"a module without a proper '{name}'")
    return facts
