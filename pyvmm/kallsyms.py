"""A kernel's symbols, read from its own image: the tables that the kernel keeps for /proc/kallsyms (CONFIG_KALLSYMS).

Source: Linux scripts/kallsyms.c and kernel/kallsyms.c.

    offsets i32[n] | base u64 | n u32 | names | markers u32[] | (order) | token table | token index u16[256]    to 6.3
    n u32 | names | markers u32[] | token table | token index u16[256] | offsets i32[n] | base u64    from 6.4 on
    the same without base: an offset counts from its own place                                    seen in 7.2

A name is a length (one byte, or two of seven bits) and as many tokens; token t is the string at index[t] of the
table. The first letter of a name is its type. A token that was not needed for a pair of letters is the letter
itself, so the digits stand in the table one after another, by which it is found. Tried with 5.10, 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from struct import error as StructError
from struct import unpack_from
from typing import Final

_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS: Final = 256
_MARK: Final = 256  # symbols between two markers
_NAME_LIMIT: Final = 512
_MARKERS_LEAST: Final = 20
_MARKERS_WITHIN: Final = 2 << 20  # bytes before the token table
_KERNEL: Final = 0xFFFF_FFFF_8000_0000


class NoSymbolsError(ValueError):
    """The image holds no table that can be read."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Symbols by rising address: `addresses[i]` is of `names[i]`, `types[i]` is nm's letter."""

    addresses: list[int]
    names: list[str]
    types: str


def read_kallsyms(image: bytes, virtual: Callable[[int], int]) -> Tables:
    """Return the symbols of a kernel image that is not compressed; `virtual` gives the address of a place in it.

    Raises NoSymbolsError.
    """
    for found in re.finditer(re.escape(_DIGITS), image):
        try:
            return _read(image, found.start(), virtual)
        except (NoSymbolsError, IndexError, ValueError, StructError):
            continue
    raise NoSymbolsError("no table of kernel symbols (CONFIG_KALLSYMS)")


def _align(at: int, to: int) -> int:
    return -(-at // to) * to


def _read(image: bytes, zero: int, virtual: Callable[[int], int]) -> Tables:
    table = zero
    for _ in range(ord("0")):
        table = image.rindex(b"\0", 0, table - 1) + 1
    tokens, at = [], table
    for _ in range(_TOKENS):
        end = image.index(b"\0", at)
        tokens.append(image[at:end])
        at = end + 1
    starts = (0, len(tokens[0]) + 1, len(tokens[0]) + len(tokens[1]) + 2)
    index = next((each for each in (_align(at, 4), _align(at, 8)) if unpack_from("<3H", image, each) == starts), 0)
    if not index or table % 4:
        raise NoSymbolsError("no token index")
    markers_at, markers = _markers(image, table)
    count, names_at = _names(image, markers_at, markers)
    names = _decode(image, names_at, count, tokens)
    addresses = _addresses(image, count, before=names_at, behind=index + 2 * _TOKENS, virtual=virtual)
    order = sorted(range(count), key=addresses.__getitem__)
    return Tables(
        [addresses[n] for n in order],
        [names[n][1:].decode("ascii", "replace") for n in order],
        "".join(chr(names[n][0]) for n in order),
    )


def _markers(image: bytes, table: int) -> tuple[int, list[int]]:
    """Return where the markers begin, and them: where in the names each 256th symbol is."""
    first = max(0, table - _MARKERS_WITHIN)
    words = memoryview(image)[first:table].cast("I")
    for at in range(len(words) - 2, 0, -1):
        if words[at] == 0 and _is_step(0, words[at + 1]):
            found = [0]
            while at + len(found) < len(words) and _is_step(found[-1], words[at + len(found)]):
                found.append(words[at + len(found)])
            if len(found) > _MARKERS_LEAST:
                return first + 4 * at, found
    raise NoSymbolsError("no markers")


def _is_step(before: int, value: int) -> bool:
    return 2 * _MARK <= value - before < 128 * _MARK


def _names(image: bytes, end: int, markers: list[int]) -> tuple[int, int]:
    """Return the number of symbols, and where their names begin, which end before `end`."""
    last = end - markers[-1]
    for start in range(last // 4 * 4, last - _MARK * _NAME_LIMIT, -4):
        for count in unpack_from("<2I", image, start - 8):  # aligned to 4 or to 8 bytes
            if _MARK * (len(markers) - 1) < count <= _MARK * len(markers):
                at = start
                for _ in range(_MARK):
                    at = _skip(image, at)[1]
                if at == start + markers[1]:
                    return count, start
    raise NoSymbolsError("no names")


def _skip(image: bytes, at: int) -> tuple[int, int]:
    """Return where the tokens of the name at `at` begin and end."""
    size = image[at]
    at += 1
    if size & 0x80:
        size = size & 0x7F | image[at] << 7
        at += 1
    return at, at + size


def _decode(image: bytes, at: int, count: int, tokens: list[bytes]) -> list[bytes]:
    result, get = [], tokens.__getitem__
    for _ in range(count):
        begin, at = _skip(image, at)
        result.append(b"".join(map(get, image[begin:at])))
    return result


def _addresses(image: bytes, count: int, *, before: int, behind: int, virtual: Callable[[int], int]) -> list[int]:
    size = _align(4 * count, 8)
    for offsets, base_at in ((before - 16 - size, before - 16), (behind, behind + size)):
        (base,) = unpack_from("<Q", image, base_at)
        if offsets >= 0 and base >= _KERNEL:
            values = unpack_from(f"<{count}i", image, offsets)
            if sum(value < 0 for value in values) > count // 2:  # per-CPU symbols are absolute, the others negative
                return [base - 1 - value if value < 0 else value for value in values]
            return [base + (value & 0xFFFFFFFF) for value in values]
    own = virtual(behind)
    return [own + 4 * n + value for n, value in enumerate(unpack_from(f"<{count}i", image, behind))]
