"""A structure's bytes as rows: one for each field that its declaration names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from uuid import UUID

from pyvmm.bits import BitField, Bits
from pyvmm.guest_text import one_line
from pyvmm.vmbus.names import kind_of
from pyvmm.wire import Buffer, Field, Wire, layout

FORMS = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "i": "i32", "q": "i64"}
"""Names of the fields' forms, as the declarations write them."""
DECIMAL_LIMIT = 4096
"""The first number that is shown in hexadecimal: larger ones are mostly addresses, ids and masks."""
FEW_FIELDS = 4
"""Named bits up to which those that are 0 are shown, too."""
WORDS_LIMIT = 8
"""Rows of a list of numbers: a GPADL of a ring has hundreds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One field. `offset` counts from the beginning of what was decoded; `value` is its number, GUID or bytes."""

    offset: int
    name: str
    form: str
    """`u32`, `guid`, `bytes[120]`; empty for a remark without bytes."""
    data: bytes
    value: int | UUID | bytes
    text: str
    """The value, as people read it."""
    meaning: str = ""
    """What the value stands for, such as a member's name; empty if nothing is known of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One structure. `title` is the first line of its declaration's docstring, or of its own."""

    title: str
    rows: tuple[Row, ...]
    declared: type | None = None
    """The class that declares it."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What bytes are: a name, such as OFFER, and structures that lie one after the other in them."""

    name: str
    parts: tuple[Part, ...]

    @property
    def rows(self) -> list[Row]:
        """Return all rows."""
        return [row for part in self.parts for row in part.rows]

    def value(self, name: str) -> int | UUID | bytes | None:
        """Return the value of the last field of this name, which is the innermost structure's."""
        return next((row.value for row in reversed(self.rows) if row.name == name), None)


def structure(cls: type[Wire], data: Buffer, at: int = 0) -> Part:
    """Decode the structure `cls` at offset `at`; if the bytes end in it, the last row says how many it lacks."""
    rows: list[Row] = []
    begin = at
    for field in layout(cls):
        place = begin + field.offset
        if place + field.size > len(data):
            rows.append(_cut(data, place, begin + cls.SIZE))
            break
        rows.append(_row(field, bytes(data[place : place + field.size]), place))
    return Part(_title(cls), tuple(rows), cls)


def number_rows(name: str, data: Buffer, at: int, count: int, size: int, kind: type[int] | None = None) -> list[Row]:
    """Return rows of `count` numbers of `size` bytes, from offset `at` on: WORDS_LIMIT, and one row for the rest."""
    rows: list[Row] = []
    form = f"u{8 * size}"
    here = min(count, max(0, len(data) - at) // size)
    for index in range(min(here, WORDS_LIMIT)):
        raw = bytes(data[at + index * size : at + (index + 1) * size])
        rows.append(number_row(f"{name}[{index}]", form, raw, at + index * size, kind))
    if here > WORDS_LIMIT:
        rows.append(remark(at + WORDS_LIMIT * size, f"... {name}[{here - 1}]", f"{here - WORDS_LIMIT} more"))
    if here < count:
        rows.append(remark(at + here * size, "(cut off)", f"{count - here} of {count} {name} are not there"))
    return rows


def number_row(name: str, form: str, raw: bytes, at: int, kind: type[int] | None = None) -> Row:
    """Return the row of an unsigned number."""
    number = int.from_bytes(raw, "little")
    return Row(at, name, form, raw, number, _number_text(number), meaning(number, kind))


def bytes_row(name: str, data: Buffer, at: int, end: int | None = None) -> Row:
    """Return a row of plain bytes."""
    raw = bytes(data[at:end])
    return Row(at, name, f"bytes[{len(raw)}]", raw, raw, *_bytes_text(raw))


def remark(at: int, name: str, text: str) -> Row:
    """Return a row that has no bytes."""
    return Row(at, name, "", b"", b"", text)


def meaning(number: int, kind: type[int] | None) -> str:
    """Return what a number of this kind means: a member's name, flags, or bits by name; empty for an unknown one."""
    if kind is None:
        return ""
    if issubclass(kind, Bits):
        if kind.__str__ is not int.__str__:  # it has words of its own, as a version has
            return str(kind(number))
        fields = [name for name, each in vars(kind).items() if isinstance(each, BitField)]
        shows_zeros = len(fields) <= FEW_FIELDS
        named = [(name, getattr(kind(number), name)) for name in fields]
        return " ".join(f"{name}={_number_text(value)}" for name, value in named if value or shows_zeros)
    if issubclass(kind, IntFlag):
        names = [str(each.name) for each in kind if number & each]
        rest = number & ~sum({each.value for each in kind})
        return " | ".join([*names, *([hex(rest)] if rest else [])])
    assert issubclass(kind, Enum)
    member = kind._value2member_map_.get(number)
    return "unknown" if member is None else str(member.name)


def _row(field: Field, raw: bytes, at: int) -> Row:
    if field.guid:
        guid = UUID(bytes_le=raw)
        return Row(at, field.name, "guid", raw, guid, str(guid), kind_of(str(guid)))
    form = FORMS.get(field.form)
    if form is None:
        return Row(at, field.name, f"bytes[{field.size}]", raw, raw, *_bytes_text(raw))
    number = int.from_bytes(raw, "little", signed=field.form.islower())
    return Row(at, field.name, form, raw, number, _number_text(number), meaning(number, field.meaning))


def _cut(data: Buffer, at: int, end: int) -> Row:
    raw = bytes(data[at:])
    return Row(
        at, "(cut off)", f"bytes[{len(raw)}]" if raw else "", raw, raw, f"{end - len(data)} bytes are not there"
    )


def _number_text(number: int) -> str:
    return str(number) if -DECIMAL_LIMIT < number < DECIMAL_LIMIT else hex(number)


def _bytes_text(raw: bytes) -> tuple[str, str]:
    """Return an array of bytes without its zeros at the end, and the text that it is, if it is one."""
    used = raw.rstrip(b"\0")
    if not used:
        return ("zeros" if raw else "none"), ""
    shown = used[:16].hex(" ") + (f" ... ({len(used)} bytes, then zeros)" if len(used) > 16 else "")
    if all(32 <= each < 127 for each in used) and len(used) >= 3:
        return shown, f"{one_line(used[:60])!r}"
    if len(used) >= 5 and not any(used[1::2]) and all(32 <= each < 127 for each in used[::2]):
        return shown, f"{used[::2][:60].decode('ascii')!r}, UTF-16"
    return shown, ""


def _title(cls: type) -> str:
    text = (cls.__doc__ or cls.__name__).strip().splitlines()[0].split(". ")[0].split(": ")[0]
    return cls.__name__ if text.startswith(f"{cls.__name__}(") else text.rstrip(".")


def parts_with(parts: Sequence[Part], rows: Sequence[Row]) -> tuple[Part, ...]:
    """Return parts with more rows in the last one."""
    last = parts[-1]
    return *parts[:-1], Part(last.title, (*last.rows, *rows), last.declared)
