"""Breakpoints of a module's blocks, and their hits, as text for the monitor.

A site is 7 bytes, `<I2sB`: an offset from the base address, the two bytes expected there, and flags. Hits are a byte
for each block. Both are compressed, then in base64: 2,138 blocks of hv_vmbus take 9 KB; a monitor's message has 64.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from typing import Final

from pyvmm.errors import ConfigError

SITE_LIMIT: Final = 65536
"""Most blocks of a module."""

_RECORD: Final = struct.Struct("<I2sB")
_KNOWN, _EXIT, _NONE = 1, 2, 4
_PLACED, _SEEN = 1, 2

Place = tuple[int, bytes | None]
"""A breakpoint's virtual address, and the bytes there if they are known."""


def pack_sites(sites: Sequence[Place | None], exits: Sequence[int]) -> tuple[int, str]:
    """Return the base address (as a signed number) and the text. Raises ConfigError if they are too far apart."""
    addresses = [each[0] for each in sites if each is not None] + list(exits)
    base = min(addresses, default=0)
    if max(addresses, default=0) - base >= 1 << 32:
        raise ConfigError("the module's sections are more than 4 GiB apart")
    records = []
    for each in sites:
        if each is None:
            records.append(_RECORD.pack(0, b"", _NONE))
        else:
            records.append(_RECORD.pack(each[0] - base, each[1] or b"", _KNOWN if each[1] is not None else 0))
    records += [_RECORD.pack(address - base, b"", _EXIT) for address in exits]
    return base - (1 << 64) if base >> 63 else base, _pack(b"".join(records))


def parse_sites(base: int, text: str) -> tuple[list[Place | None], list[int]]:
    """Return the sites and the exits. Raises ConfigError for a text that `pack_sites` has not made."""
    data = _unpack(text, SITE_LIMIT * _RECORD.size)
    if len(data) % _RECORD.size:
        raise ConfigError("'sites' is cut off")
    sites: list[Place | None] = []
    exits: list[int] = []
    for offset, expected, flags in _RECORD.iter_unpack(data):
        address = (base + offset) % (1 << 64)
        if flags & _EXIT:
            exits.append(address)
        elif flags & _NONE:
            sites.append(None)
        else:
            sites.append((address, expected if flags & _KNOWN else None))
    return sites, exits


def pack_hits(blocks: int, placed: set[int], seen: set[int]) -> str:
    """Return the state of `blocks` blocks as text."""
    return _pack(bytes(_PLACED * (n in placed) + _SEEN * (n in seen) for n in range(blocks)))


def parse_hits(text: str) -> tuple[int, set[int], set[int]]:
    """Return the number of blocks, and which were placed and seen. Raises ConfigError."""
    data = _unpack(text, SITE_LIMIT)
    placed, seen = ({n for n, each in enumerate(data) if each & bit} for bit in (_PLACED, _SEEN))
    return len(data), placed, seen


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()


def _unpack(text: str, limit: int) -> bytes:
    try:
        packed = base64.b64decode(text, validate=True)
        machine = zlib.decompressobj()
        data = machine.decompress(packed, limit)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ConfigError(f"not packed as it should be: {error}") from None
    if machine.unconsumed_tail or not machine.eof:
        raise ConfigError("it is cut off, or too long")
    return data
