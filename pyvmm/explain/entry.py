"""An entry of the catalogue: one thing that can be explained, taken from its declaration."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

from pyvmm.bits import BitField, Bits
from pyvmm.explain import declared
from pyvmm.explain.declared import Place
from pyvmm.explain.references import Use, uses
from pyvmm.wire import Field, Wire, layout

HANDLERS_SHOWN = 6
"""Places listed for one entry; a status is used in many."""

Symbol = tuple[str, ...]
"""A module and the names in it that lead to a declaration: ("pyvmm.hyperv.tlfs", "Msr", "SIMP")."""


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field of a register or structure: `place` is its bits, or its offset and size."""

    place: str
    name: str
    meaning: str = ""


@dataclass(slots=True)
class Entry:
    """One thing that can be explained. `name` and `aliases` find it, and so does `number` if it has one."""

    kind: str
    name: str
    what: str
    """What sort of thing it is, in words: `Hyper-V MSR`."""
    number: int | None = None
    symbol: str = ""
    """Its name in Linux or QEMU."""
    text: str = ""
    spec: tuple[str, ...] = ()
    linux: tuple[str, ...] = ()
    place: Place | None = None
    """Where it is declared."""
    fields: tuple[FieldRow, ...] = ()
    symbols: tuple[Symbol, ...] = ()
    """The declarations whose uses are its handlers."""
    handled_at: tuple[Use, ...] = ()
    """Handlers that the declaration itself names, such as a QMP command's function."""
    related: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    decimal: bool = False
    """The number is written in decimal digits where the thing is at home."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts by name, such as a QMP command's arguments."""

    @property
    def title(self) -> str:
        """Return the name by which it is shown: Linux's, if that is one word."""
        known_by_symbol = self.symbol and " " not in self.symbol and self.kind not in ("device", "guid")
        return self.symbol if known_by_symbol else self.name

    @property
    def written(self) -> str:
        """Return the number as it is written."""
        if self.number is None:
            return ""
        return str(self.number) if self.decimal else f"{self.number:#x}"

    def handlers(self) -> list[Use]:
        """Return where our code handles it, the dispatching places first."""
        found = list(self.handled_at)
        for module, *names in self.symbols:
            found += uses(module, *names)
        best: dict[tuple[str, str], Use] = {}
        for use in found:
            key = use.place.path, use.place.symbol
            if key not in best or use.rank < best[key].rank:
                best[key] = use
        return sorted(best.values(), key=lambda use: (use.rank, use.place.path, use.place.line))


def fields_of(cls: type[Any]) -> tuple[FieldRow, ...]:
    """Return the fields of a register's, a structure's or a set of flags' class."""
    docs = declared.read(cls.__module__).find(cls.__name__)
    notes = {name: each.doc for name, each in docs.members.items()} if docs else {}
    if issubclass(cls, Bits):
        return tuple(
            FieldRow(_bits(each), name, notes.get(name, ""))
            for name, each in vars(cls).items()
            if isinstance(each, BitField)
        )
    if issubclass(cls, IntFlag):
        return tuple(FieldRow(_bits_of(flag), flag.name or "", notes.get(flag.name or "", "")) for flag in cls)
    if issubclass(cls, Wire):
        return tuple(
            FieldRow(f"+{each.offset}, {each.size}", each.name, _meaning(each, notes.get(each.name, "")))
            for each in layout(cls)
        )
    return ()


def _meaning(each: Field, note: str) -> str:
    """Return what a field holds: the class that its annotation names, and the comment in its line."""
    kind = "GUID" if each.guid else each.meaning.__name__ if each.meaning is not None else ""
    return "; ".join(filter(None, (kind, note)))


def _bits(each: BitField) -> str:
    return _range(each.low, each.mask.bit_length())


def _bits_of(flag: IntFlag) -> str:
    low = (flag & -flag).bit_length() - 1
    return _range(low, int(flag).bit_length() - low)


def _range(low: int, width: int) -> str:
    return f"bit {low}" if width == 1 else f"bits {low}-{low + width - 1}"
