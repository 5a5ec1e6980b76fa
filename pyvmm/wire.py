"""Binary structures in memory and messages: `@wire` classes with u8..u64, GUID and byte-array fields.

A `@wire` class is a slotted dataclass plus one compiled `struct.Struct`: little-endian, packed, no padding but what
the fields say. Numbers stay plain ints (a guest may send any value; compare them with an IntEnum, never convert).

    @wire
    class Header(Wire):
        \"\"\"struct dm_header.\"\"\"
        type: u16
        size: u16
        trans_id: u32

    Header.SIZE                      # 8
    Header.parse(data, offset=0)     # WireError "Header at 0: needs 8 of 7 bytes"
    Header(1, 16, 7).build()         # bytes
    layout(Header)                   # each field's name, offset, size and form

An annotation may say what a field's numbers mean, for those who show them (`pyvmm.decode`): an IntEnum, an IntFlag or
a class of Bits. Parsing ignores it.

    type: Annotated[u16, MessageType]
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from struct import Struct, calcsize
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform, get_type_hints
from uuid import UUID

from pyvmm.errors import WireError

Buffer = bytes | bytearray | memoryview

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
i32 = Annotated[int, "i"]
i64 = Annotated[int, "q"]
Guid = Annotated[UUID, "16s"]
"""A GUID in the Windows byte order: the first three fields little-endian."""


class Wire:
    """Base of every `@wire` class; declares the decorator's additions for type checkers."""

    __slots__ = ()
    SIZE: ClassVar[int]
    _struct: ClassVar[Struct]
    _guids: ClassVar[tuple[int, ...]]
    _names: ClassVar[tuple[str, ...]]

    @classmethod
    def parse(cls, data: Buffer, offset: int = 0) -> Self:
        """Read one structure at `offset`. Raises WireError if `data` is too short."""
        if offset < 0 or len(data) - offset < cls.SIZE:
            raise WireError(f"{cls.__name__} at {offset}: needs {cls.SIZE} of {max(0, len(data) - offset)} bytes")
        values: tuple[Any, ...] = cls._struct.unpack_from(data, offset)
        if cls._guids:
            changed = list(values)
            for index in cls._guids:
                changed[index] = UUID(bytes_le=changed[index])
            return cls(*changed)
        return cls(*values)

    def build(self) -> bytes:
        """Return the packed bytes, SIZE of them."""
        values = [getattr(self, name) for name in self._names]
        for index in self._guids:
            values[index] = values[index].bytes_le
        return self._struct.pack(*values)


T = TypeVar("T", bound=Wire)


@dataclass_transform(field_specifiers=(field,))
def wire(cls: type[T]) -> type[T]:
    """Make `cls` a packed little-endian structure. Byte arrays: `Annotated[bytes, "120s"]`."""
    made: type[T] = dataclass(slots=True)(cls)
    hints = get_type_hints(made, include_extras=True)
    names = tuple(f.name for f in fields(made))  # type: ignore[arg-type]
    made._names = names
    made._struct = Struct("<" + "".join(hints[name].__metadata__[0] for name in names))
    made._guids = tuple(i for i, name in enumerate(names) if hints[name].__origin__ is UUID)
    made.SIZE = made._struct.size
    return made


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a structure: `form` is its letters in a format of `struct`."""

    name: str
    offset: int
    size: int
    form: str
    guid: bool
    meaning: type[int] | None
    """The enumeration or class of bits that the annotation names."""


def layout(cls: type[Wire]) -> tuple[Field, ...]:
    """Return the fields of a structure in order, with their offsets from its beginning."""
    hints = get_type_hints(cls, include_extras=True)
    forms = [hints[name].__metadata__[0] for name in cls._names]
    at = cls.SIZE - sum(calcsize(f"<{form}") for form in forms)  # a message's fields follow its header
    made: list[Field] = []
    for name, form in zip(cls._names, forms, strict=True):
        size = calcsize(f"<{form}")
        more = hints[name].__metadata__[1:]
        made.append(Field(name, at, size, form, hints[name].__origin__ is UUID, more[0] if more else None))
        at += size
    return tuple(made)
