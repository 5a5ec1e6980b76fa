"""Finds what a word means: a number, a name, a GUID. A word may have several meanings; each is an entry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from uuid import UUID

from pyvmm.errors import ConfigError
from pyvmm.explain import machine_parts
from pyvmm.explain.catalogue import every_entry
from pyvmm.explain.entry import Entry, FieldRow
from pyvmm.explain.kinds import KINDS

WORD_LIMIT = 200
"""Characters of a name; no thing has a longer one."""
NUMBER_LIMIT = 1 << 64
NEAREST = 5

_NUMBER = re.compile(r"[+-]?(0x[0-9a-f_]+|0b[01_]+|[0-9_]+)", re.IGNORECASE)
_GUID = re.compile(r"\{?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\}?", re.IGNORECASE)


def find(word: str, kinds: Sequence[str] = ()) -> list[Entry]:
    """Return what a number, name or GUID means, each meaning once. Raises ConfigError if nothing has it."""
    word = word.strip()
    wanted = tuple(kinds) or tuple(KINDS)
    if number := _number(word):
        found = [each for each in every_entry(wanted) if each.number == number[0]]
    elif _GUID.fullmatch(word):
        found = _by_guid(UUID(word), wanted)
    else:
        found = list(_named(word, wanted))
    if not found and re.fullmatch(r"[0-9a-fA-F]{1,16}", word):
        found = [each for each in every_entry(wanted) if each.number == int(word, 16)]
    if not found:
        raise ConfigError(_unknown(word, wanted, bool(kinds)))
    return found


def _number(word: str) -> tuple[int] | None:
    """Return a number's value, a negative one as 32 bits (NTSTATUS); None for what is no number."""
    if not _NUMBER.fullmatch(word) or len(word) > WORD_LIMIT:
        return None
    try:
        value = int(word, 0) if not re.fullmatch(r"[+-]?0[0-9_]+", word) else int(word, 10)
    except ValueError:
        return None
    return (value & 0xFFFFFFFF if -(1 << 31) <= value < 0 else value,)


def as_hexadecimal(word: str, kinds: Sequence[str] = ()) -> list[Entry]:
    """Return the meanings of decimal digits read as hexadecimal ones, since traces show many numbers so."""
    if not re.fullmatch(r"[0-9]{2,16}", word) or word.startswith("0"):
        return []
    return [
        each
        for each in every_entry(tuple(kinds) or tuple(KINDS))
        if each.number == int(word, 16) and not each.decimal
    ]


def _by_guid(guid: UUID, kinds: tuple[str, ...]) -> list[Entry]:
    text = str(guid)
    found = [
        each for each in every_entry(tuple({"device", "guid"} & set(kinds))) if text in (each.name, *each.aliases)
    ]
    if not found and "guid" in kinds and (port := machine_parts.socket_port(guid)):
        found = [port]
    return found


def _named(word: str, kinds: tuple[str, ...]) -> Iterator[Entry]:
    wanted = _plain(word)
    ends: list[Entry] = []
    found = False
    for each in every_entry(kinds):
        if wanted and wanted in map(_plain, (each.name, each.symbol, *each.aliases)):
            found = True
            yield each
        elif wanted and each.symbol.lower().endswith(f"_{word.lower()}"):
            ends.append(each)
    if not found:
        yield from ends


def _plain(name: str) -> str:
    """Return a name for comparison: neither case nor underscores count, nor `struct` before it."""
    return re.sub(r"[_\-\s]|\.(?!\d)", "", name.lower().removeprefix("struct "))


def _unknown(word: str, kinds: tuple[str, ...], narrowed: bool) -> str:
    shown = word if len(word) <= 60 else word[:57] + "..."
    if narrowed and (others := _kinds_of(word)):
        return f"{shown} is no {' or '.join(kinds)}, but {', '.join(others)}: leave out --kind to see all"
    among = f" among {', '.join(kinds)}" if narrowed else ""
    near = nearest(word, kinds)
    hint = f"; near are {', '.join(near)}" if near else ""
    return f"nothing is called {shown!r}{among}{hint}: `pyvmm explain` lists the kinds with examples"


def _kinds_of(word: str) -> list[str]:
    """Return the kinds in which a word means something."""
    try:
        return list(dict.fromkeys(each.kind for each in find(word)))
    except ConfigError:
        return []


def nearest(word: str, kinds: tuple[str, ...] = tuple(KINDS)) -> list[str]:
    """Return the names and numbers that are most like a word."""
    if number := _number(word):
        numbered = [each for each in every_entry(kinds) if each.number is not None]
        numbered.sort(key=lambda each: abs((each.number or 0) - number[0]))
        return [f"{each.written} ({each.name})" for each in numbered[:3]]
    if len(word) > WORD_LIMIT:
        return []
    names: dict[str, str] = {}
    for each in every_entry(kinds):
        for name in filter(None, (each.symbol, each.name)):
            names.setdefault(_plain(name), name)
    wanted = _plain(word)
    begins = [name for plain, name in names.items() if len(wanted) > 2 and wanted in plain]
    close = [names[plain] for plain in get_close_matches(wanted, names, NEAREST, 0.7)]
    return list(dict.fromkeys([*close, *begins]))[:NEAREST]


def with_value(word: str, kinds: Sequence[str] = ()) -> list[Entry]:
    """Return the meanings of `NAME=VALUE`: the fields of NAME hold what they are in VALUE. Raises ConfigError."""
    name, _, given = word.partition("=")
    number = _number(given.strip())
    if number is None or given.strip().startswith("-") or number[0] >= NUMBER_LIMIT:
        raise ConfigError(f"{given[:40]!r} is no number of 64 bits: give NAME=VALUE, as in 0x40000092=0x100f3")
    found = [
        each
        for each in find(name, kinds)
        if each.fields and all(_span(row) and "." not in row.name for row in each.fields)
    ]
    if not found:
        raise ConfigError(
            f"{name.strip()[:60]} has no fields in a number: `pyvmm explain {name.strip()[:60]}` shows it"
        )
    return [replace(each, fields=tuple(_valued(row, number[0]) for row in each.fields)) for each in found]


def _span(row: FieldRow) -> tuple[int, int] | None:
    """Return the lowest and the highest bit of a field."""
    if found := re.fullmatch(r"bits? (\d+)(?:-(\d+))?", row.place):
        return int(found[1]), int(found[2] or found[1])
    return None


def _valued(row: FieldRow, value: int) -> FieldRow:
    low, high = _span(row) or (0, 0)
    part = value >> low & (1 << high - low + 1) - 1
    return replace(row, meaning=f"{part:#x}" + (f"  {row.meaning}" if row.meaning else ""))
