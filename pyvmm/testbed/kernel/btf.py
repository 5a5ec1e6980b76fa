"""Layouts of a kernel's structures, read from its own image (CONFIG_DEBUG_INFO_BTF).

Source: Linux include/uapi/linux/btf.h.

A type is {name u32, info u32, size u32}; that of a structure is followed by its members, {name u32, type u32, offset
u32} each. Names are places in a table of strings. A structure is found by its name's place, without reading the types
before it, of which there are 100,000.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import error as StructError
from struct import pack, unpack_from
from typing import Final

_MAGIC: Final = b"\x9f\xeb\x01\x00\x18\x00\x00\x00"  # magic, version, flags, header length
_HEADER: Final = 24
_STRUCT: Final = 4
_BITFIELDS: Final = 1 << 31
_MEMBERS_LIMIT: Final = 4096


class NoLayoutError(ValueError):
    """The image has no such structure, or no layouts at all."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member is: byte `offset`; for a bit field, `shift` and `bits` in the byte there."""

    offset: int
    shift: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A structure: its size in bytes, and its members by name."""

    size: int
    members: dict[str, Member] = field(default_factory=dict)

    def at(self, *names: str) -> int:
        """Return the offset of the member that has the first of these names to be found. Raises NoLayoutError."""
        for name in names:
            if name in self.members:
                return self.members[name].offset
        raise NoLayoutError(f"no member {' or '.join(names)}")


class Layouts:
    """The structures of one kernel image. Raises NoLayoutError."""

    def __init__(self, image: bytes) -> None:
        start = image.find(_MAGIC)
        if start < 0:
            raise NoLayoutError("no layouts (CONFIG_DEBUG_INFO_BTF)")
        types, types_size, strings, strings_size = unpack_from("<4I", image, start + 8)
        begin = start + _HEADER
        self._types = image[begin + types : begin + types + types_size]
        self._strings = image[begin + strings : begin + strings + strings_size]

    def layout(self, name: str) -> Layout:
        """Return the structure `name`. Raises NoLayoutError."""
        place = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        wanted, at = pack("<I", place), -1
        while place and (at := self._types.find(wanted, at + 1)) >= 0:
            if at % 4 == 0:
                try:
                    found = self._read(at)
                except StructError:
                    break
                if found is not None:
                    return found
        raise NoLayoutError(f"no structure {name}")

    def _read(self, at: int) -> Layout | None:
        _, info, size = unpack_from("<3I", self._types, at)
        count = info & 0xFFFF
        if info >> 24 & 0x1F != _STRUCT or info & 0x60FF0000 or not 0 < count <= _MEMBERS_LIMIT:
            return None
        members = {}
        for number in range(count):
            name, _, offset = unpack_from("<3I", self._types, at + 12 + 12 * number)
            bits = 0
            if info & _BITFIELDS:
                bits, offset = offset >> 24, offset & 0xFFFFFF
            if offset > 8 * size or name >= len(self._strings):
                return None
            members[self._name(name)] = Member(offset // 8, offset % 8, bits)
        return Layout(size, members)

    def _name(self, place: int) -> str:
        return self._strings[place : self._strings.index(b"\0", place)].decode("ascii", "replace")
