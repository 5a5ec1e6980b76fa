"""Named bit fields of registers: an `int` whose fields read as attributes.

class SintValue(Bits):
    vector = bits(0, 8)
    masked = bit(16)

SintValue(0x100F3).vector              # 0xF3
SintValue(0x100F3).masked              # 1
SintValue(0x100F3).replace(masked=0)   # SintValue(0xF3)
"""

from __future__ import annotations

from typing import Any, Self


class BitField:
    """`width` bits from bit `low`; reads as an int."""

    __slots__ = ("low", "mask")

    def __init__(self, low: int, width: int) -> None:
        self.low = low
        self.mask = (1 << width) - 1

    def __get__(self, owner: int | None, kind: type | None = None) -> Any:
        return self if owner is None else int(owner) >> self.low & self.mask


def bits(low: int, width: int) -> BitField:
    """Declare a field of `width` bits whose lowest is bit `low`."""
    return BitField(low, width)


def bit(low: int) -> BitField:
    """Declare the single bit `low`, 0 or 1."""
    return BitField(low, 1)


class Bits(int):
    """A register value. Immutable, compares and prints as an int."""

    __slots__ = ()

    def replace(self, **changes: int) -> Self:
        """Return the value with the named fields changed. Raises ValueError for a value wider than its field."""
        value = int(self)
        for name, new in changes.items():
            spec = type(self).__dict__[name]
            if new & ~spec.mask:
                raise ValueError(f"{type(self).__name__}.{name}: {new:#x} is wider than {spec.mask:#x}")
            value = value & ~(spec.mask << spec.low) | new << spec.low
        return type(self)(value)

    def __repr__(self) -> str:
        parts = [f"{n}={getattr(self, n):#x}" for n, f in type(self).__dict__.items() if isinstance(f, BitField)]
        return f"{type(self).__name__}({int(self):#x}: {', '.join(parts)})"
