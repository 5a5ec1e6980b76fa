"""Memory sizes as people write them: `512M`, `1.5G`, `0x20000000`.

A number with no unit is MiB, as in QEMU's `-m 512` and its monitor's `balloon 512`. A hexadecimal number is bytes:
sizes in hexadecimal MiB are not in use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyvmm.errors import ConfigError

_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_HEX = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)

LIMIT = 1 << 63
"""Exclusive limit of a size: sizes are sent as JSON integers, which readers store in signed 64 bits."""

_LONGEST = 40
"""Longest size in characters: conversion of a million digits to an int would be slow."""


def parse_size(text: str) -> int:
    """Parse `text` to bytes; zero is a size. Raises ConfigError that says what is wrong with it."""
    word = text.strip()
    shown = repr(word if len(word) <= _LONGEST else word[:_LONGEST] + "…")
    if not word:
        raise ConfigError("a size is empty: write it as 512M or 2G")
    if word.startswith("-"):
        raise ConfigError(f"size {shown} is negative")
    if len(word) > _LONGEST:
        raise ConfigError(f"size {shown} is too long")
    size = int(word, 16) if _HEX.fullmatch(word) else _parse_decimal(word, shown)
    if size >= LIMIT:
        raise ConfigError(f"size {shown} is too large: at most 8E")
    return size


def _parse_decimal(word: str, shown: str) -> int:
    match = _SIZE.fullmatch(word)
    if match is None:
        raise ConfigError(f"{shown} is not a size: write a number and a unit, like 512M or 1.5G")
    unit = match["unit"].lower().removesuffix("ib") or "m"
    if unit not in _UNITS:
        hint = f" (did you mean {match['number']}{unit[0].upper()}?)" if unit[:-1] in _UNITS else ""
        raise ConfigError(f"size {shown} has an unknown unit {match['unit']!r}: use k, M, G or T{hint}")
    whole, _, decimals = match["number"].partition(".")
    # 1.3G is no whole number of bytes; the fraction is dropped
    return int(int(whole + decimals) * _UNITS[unit] // 10 ** len(decimals))


def is_size(text: str) -> bool:
    """Return whether `parse_size` accepts `text`. VM names must not be sizes: `pyvmm balloon 256M` is then clear."""
    try:
        parse_size(text)
    except ConfigError:
        return False
    return True


def format_size(size: int) -> str:
    """Format `size` bytes for people: `512 MiB`, `1.5 GiB`; one decimal at most, and exact where that is short."""
    sign, size = ("-", -size) if size < 0 else ("", size)
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            if unit >= 1 << 30 and size < 16 * unit and size % (unit >> 10) == 0 and (size * 10) % unit:
                continue  # 1234 MiB says more than 1.2 GiB
            number = f"{size / unit:.1f}".removesuffix(".0")
            return f"{sign}{number} {name}"
    return f"{sign}{size} bytes"


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """A guest's memory as configured: sizes in bytes, and the buffer in percent."""

    boot: int
    max: int | None = None
    min: int | None = None
    buffer: int | None = None

    @property
    def most(self) -> int:
        """Return the largest size that the guest may have."""
        return self.boot if self.max is None else self.max

    def __str__(self) -> str:
        text = exact_size(self.boot)
        for name, value in (("min", self.min), ("max", self.max)):
            if value is not None:
                text += f",{name}={exact_size(value)}"
        return text if self.buffer is None else f"{text},buffer={self.buffer}%"


_BUFFER = re.compile(r"([0-9]{1,4})%?")
BUFFER_LIMIT = 2000
"""Largest buffer in percent, Hyper-V's own limit."""


def parse_memory(text: str) -> MemorySpec:
    """Parse `SIZE[,max=SIZE][,min=SIZE][,buffer=N%]`, in any order after the first. Raises ConfigError."""
    first, *rest = text.split(",")
    boot = parse_size(first)
    values: dict[str, int] = {}
    for part in rest:
        name, equals, value = part.strip().partition("=")
        if not equals or name not in ("max", "min", "buffer"):
            raise ConfigError(f"memory option {part!r}: write SIZE[,max=SIZE][,min=SIZE][,buffer=N%]")
        if name in values:
            raise ConfigError(f"memory option {name}= is there twice")
        if name == "buffer":
            match = _BUFFER.fullmatch(value.strip())
            if match is None or not 0 < int(match[1]) <= BUFFER_LIMIT:
                raise ConfigError(f"memory buffer {value!r}: 1% to {BUFFER_LIMIT}%")
            values[name] = int(match[1])
        else:
            values[name] = parse_size(value)
    spec = MemorySpec(boot, values.get("max"), values.get("min"), values.get("buffer"))
    if spec.most < boot:
        raise ConfigError(f"memory max={format_size(spec.most)} is less than the {format_size(boot)} at boot")
    if spec.min is not None and spec.min > boot:
        raise ConfigError(f"memory min={format_size(spec.min)} is more than the {format_size(boot)} at boot")
    return spec


def exact_size(size: int) -> str:
    """Format `size` so that `parse_size` returns the same value: `1536M`, `4097b`."""
    for shift, unit in ((30, "G"), (20, "M"), (10, "k")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}b"
