"""Comparison of two traces: events that only one has, and events with different values.

Numbers that two runs never share (transaction ids, GPADL handles, addresses, times) are ignored. An event that never
occurs in the other trace differs in what is traced, not in order: such events are only counted, not shown in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pyvmm.analysis.alignment import Aligner
from pyvmm.analysis.entry import Entry
from pyvmm.errors import ConfigError

IGNORED = frozenset(
    {
        "dev",
        "gpadl_id",
        "trans_id",
        "transaction_id",
        "transaction",
        "monitor_page1",
        "monitor_page2",
        "interrupt_page",
        "start",
        "starthole",
        "startcommon",
        "startrange",
        "starthpr",
        "gpa",
        "client",
        "id",
        "milliseconds",
        "time_100ns",
        "sequence",
    }
)
"""Fields that differ from run to run."""

NOISE = ("trace.*", "machine.vcpu_exit", "machine.exit_count", "machine.memory", "serial.irq", "monitor_*")
"""Events that differ in any two runs, left out unless requested."""

LIMIT = 30_000
"""Most events of a trace that are aligned: some seconds in the worst case."""

Key = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class Same:
    """An event that both traces have."""

    a: Entry
    b: Entry


@dataclass(frozen=True, slots=True)
class Changed:
    """The same event at the same place with different values: field -> (A's, B's)."""

    a: Entry
    b: Entry
    fields: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class OnlyA:
    a: Entry


@dataclass(frozen=True, slots=True)
class OnlyB:
    b: Entry


Step = Same | Changed | OnlyA | OnlyB


@dataclass(slots=True)
class Difference:
    """The aligned traces, and counts of the events left out because the other side never has them."""

    steps: list[Step] = field(default_factory=list)
    unknown_to_b: Counter[str] = field(default_factory=Counter)
    unknown_to_a: Counter[str] = field(default_factory=Counter)

    @property
    def same(self) -> bool:
        """Return whether the events that both trace are equal."""
        return all(isinstance(step, Same) for step in self.steps)


def compare(
    a: Iterable[Entry],
    b: Iterable[Entry],
    *,
    patterns: Collection[str] = (),
    ignore: Collection[str] = (),
    everything: bool = False,
) -> Difference:
    """Align two traces. ConfigError if there are more than LIMIT events.

    `patterns`: only events so named, else all but NOISE; `ignore`: more fields to ignore; `everything`: also
    events that one side never has.
    """
    first = [entry for entry in a if _wanted(entry, patterns)]
    second = [entry for entry in b if _wanted(entry, patterns)]
    made = Difference()
    if not everything:
        names_a, names_b = {entry.name for entry in first}, {entry.name for entry in second}
        made.unknown_to_b = Counter(entry.name for entry in first if entry.name not in names_b)
        made.unknown_to_a = Counter(entry.name for entry in second if entry.name not in names_a)
        first = [entry for entry in first if entry.name in names_b]
        second = [entry for entry in second if entry.name in names_a]
    for side in (first, second):
        if len(side) > LIMIT:
            raise ConfigError(f"{len(side)} events are too many to align: choose some with --only 'vmbus_*'")
    ignored = IGNORED | set(ignore)
    made.steps = list(_align(first, second, ignored))
    return made


def _wanted(entry: Entry, patterns: Collection[str]) -> bool:
    if not patterns:
        return not any(fnmatchcase(entry.name, pattern) for pattern in NOISE)
    return any(fnmatchcase(entry.name, pattern) for pattern in patterns)


def _key(entry: Entry, ignored: Collection[str]) -> Key:
    return entry.name, tuple((name, str(value)) for name, value in entry.fields.items() if name not in ignored)


def _align(a: list[Entry], b: list[Entry], ignored: Collection[str]) -> Iterator[Step]:
    aligner = Aligner()
    keys = [_key(entry, ignored) for entry in a], [_key(entry, ignored) for entry in b]
    for equal, a1, a2, b1, b2 in aligner.stretches(*keys):
        if equal:
            yield from (Same(x, y) for x, y in zip(a[a1:a2], b[b1:b2], strict=True))
        else:
            yield from _align_names(a[a1:a2], b[b1:b2], ignored, aligner)


def _align_names(a: list[Entry], b: list[Entry], ignored: Collection[str], aligner: Aligner) -> Iterator[Step]:
    """Align a stretch without equal events: pair events of the same name, in order."""
    for equal, a1, a2, b1, b2 in aligner.stretches([entry.name for entry in a], [entry.name for entry in b]):
        if equal:
            for x, y in zip(a[a1:a2], b[b1:b2], strict=True):
                changes = _changes(x, y, ignored)
                yield Changed(x, y, changes) if changes else Same(x, y)
        else:
            yield from (OnlyA(entry) for entry in a[a1:a2])
            yield from (OnlyB(entry) for entry in b[b1:b2])


def _changes(a: Entry, b: Entry, ignored: Collection[str]) -> dict[str, tuple[Any, Any]]:
    names = [*a.fields, *(name for name in b.fields if name not in a.fields)]
    return {
        name: (a.fields.get(name), b.fields.get(name))
        for name in names
        if name not in ignored and str(a.fields.get(name)) != str(b.fields.get(name))
    }


def summary(steps: Iterable[Step]) -> dict[str, int]:
    """Count the rows of each kind: `same`, `changed`, `only-a`, `only-b`."""
    names: dict[type[Step], str] = {Same: "same", Changed: "changed", OnlyA: "only-a", OnlyB: "only-b"}
    counts = Counter(names[type(step)] for step in steps)
    return {name: counts[name] for name in names.values()}
