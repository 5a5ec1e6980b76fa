"""The kernel's own table of symbols, in a vmlinux without others: Debian's packages have no more.

Source: Linux scripts/kallsyms.c. Since Linux 6.4 it lies in .rodata in this order, each part at a multiple of 8
bytes, or of 4 (7.2):

    num_syms u32 | names: length, tokens | markers u32[] | token_table: 256 strings | token_index u16[] | offsets

A length of 128 and more has a second byte. Offsets are relative to themselves in Linux 7, before to a base that
follows them; a symbol's first letter is its type.
"""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise
from typing import Final

from pyvmm.errors import ConfigError

_TOKENS: Final = 256
_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_SYMBOLS_LIMIT: Final = 1 << 20
_PER_MARKER: Final = 256
_LONGEST: Final = 512  # bytes of a name, in tokens
_KERNEL: Final = 0xFFFF_FFFF_8000_0000

Symbol = tuple[int, str, str]
"""Address, type and name."""


def read_kallsyms(data: bytes, address: int) -> list[Symbol]:
    """Return the symbols in the contents of a section at `address`. Raises ConfigError if there are none."""
    at = -1
    while (at := data.find(_DIGITS, at + 1)) >= 0:
        start = at
        for _ in range(ord("0")):
            start = data.rfind(b"\0", 0, max(0, start - 1)) + 1
        tokens = data[start : start + 65536].split(b"\0", _TOKENS)[:_TOKENS]
        *places, end = accumulate((len(each) + 1 for each in tokens), initial=0)
        if len(tokens) < _TOKENS or end >= 65536:
            continue
        table = struct.pack(f"<{_TOKENS}H", *places)
        for unit in (4, 8):
            index = _aligned(start + end, unit)
            if data[index : index + len(table)] == table:
                addresses = _addresses(data, index + len(table), address)
                count, names = _names(data, start, len(addresses), unit)
                if count:
                    return _decode(data, names, addresses[:count], tokens)
    raise ConfigError("no table of symbols that is known")


def _aligned(at: int, unit: int) -> int:
    return -(-at // unit) * unit


def _addresses(data: bytes, at: int, address: int) -> list[int]:
    """Return the addresses in the table at `at`, which rise; more may follow that are none."""
    count = min(_SYMBOLS_LIMIT, (len(data) - at) // 4)
    values = struct.unpack_from(f"<{count}i", data, at)
    if values[:1] == (0,):  # relative to a base, that of the kernel's first byte
        base = data.find(struct.pack("<I", 0xFFFFFFFF), at)
        found = [value & 0xFFFFFFFF for value in values]
        start = int.from_bytes(data[base - 4 : base + 4], "little")
        found = [start + value for value in found]
    else:
        found = [(address + at + 4 * n + value) % (1 << 64) for n, value in enumerate(values)]
    end = next((n + 1 for n, (a, b) in enumerate(pairwise(found)) if b < a or b < _KERNEL), len(found))
    return found[:end]


def _names(data: bytes, tokens: int, most: int, unit: int) -> tuple[int, int]:
    """Return the number of symbols and where their names begin; (0, 0) if that is not found.

    `most`: addresses there seem to be. The names end before the markers, which end before the tokens.
    """
    for count in range(most, max(0, most - _PER_MARKER), -1):
        markers = tokens - _aligned(4 * -(-count // _PER_MARKER), unit)
        if markers < 0:
            return 0, 0
        last = struct.unpack_from("<I", data, markers + 4 * ((count - 1) // _PER_MARKER))[0]
        end = markers - last
        head = struct.pack("<I", count).ljust(unit, b"\0")
        low = max(0, end - _PER_MARKER * _LONGEST)
        at = data.rfind(head, low, max(low, end))
        if at >= 0 and at % unit == 0:
            return count, at + unit
    return 0, 0


def _decode(data: bytes, at: int, addresses: list[int], tokens: list[bytes]) -> list[Symbol]:
    symbols = []
    for address in addresses:
        length = data[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        text = b"".join(tokens[each] for each in data[at : at + length]).decode(errors="replace")
        symbols.append((address, text[:1], text[1:]))
        at += length
    return symbols
