"""Receive-side scaling: which of the card's channels gets a frame, so that each connection stays on one guest CPU.

Source: Linux hyperv_net.h, struct ndis_recv_scale_param; the Toeplitz hash of NDIS ("RSS hashing functions").

The guest gives a key of 40 bytes and a table of channel numbers. The hash of a frame's addresses and ports selects an
entry. A hash takes Python some microseconds, so the channels of the connections seen last are kept.
"""

from __future__ import annotations

from struct import unpack_from

from pyvmm.errors import WireError

KEY_SIZE = 40
TABLE_LIMIT = 128
KNOWN_LIMIT = 4096
"""Connections whose channel is kept; all are forgotten when there are more."""
_DISABLE, _TABLE_UNCHANGED, _KEY_UNCHANGED = 0x10, 0x4, 0x8
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_TCP = 6


class Steering:
    """The key and the table, as the guest set them; until then each frame goes to channel 0."""

    def __init__(self) -> None:
        self.table: list[int] = []
        self._key = bytes(KEY_SIZE)
        self._rows: list[list[int]] = []
        self._known: dict[bytes, int] = {}

    def disable(self) -> None:
        """Send all frames to channel 0."""
        self.table, self._known = [], {}

    def set(self, parameters: bytes, channels: int) -> None:
        """Take OID_GEN_RECEIVE_SCALE_PARAMETERS. Raises WireError for a key or table that is not there, or that names
        more than `channels`.
        """
        if len(parameters) < 28:
            raise WireError(f"RSS parameters of {len(parameters)} bytes")
        flags, _, _, table_size, _, table_at, key_size, _, key_at = unpack_from("<HHIHHIHHI", parameters, 4)
        if flags & _DISABLE:
            self.disable()
            return
        table = self.table
        if not flags & _TABLE_UNCHANGED:
            count = table_size // 4
            if not 0 < count <= TABLE_LIMIT or table_at + 4 * count > len(parameters):
                raise WireError(f"RSS table of {table_size} bytes at {table_at} of {len(parameters)}")
            table = list(unpack_from(f"<{count}I", parameters, table_at))
            if max(table) >= channels:
                raise WireError(f"RSS table with channel {max(table)} of {channels}")
        if not flags & _KEY_UNCHANGED:
            if key_size != KEY_SIZE or key_at + KEY_SIZE > len(parameters):
                raise WireError(f"RSS key of {key_size} bytes at {key_at} of {len(parameters)}")
            self._key, self._rows = parameters[key_at : key_at + KEY_SIZE], []
        self.table, self._known = table, {}

    def channel(self, frame: memoryview) -> int:
        """Return the channel for a frame to the guest."""
        if not self.table:
            return 0
        name = _flow(frame)
        if not name:
            return self.table[0]
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= KNOWN_LIMIT:
                self._known.clear()
            found = self._known[name] = self.table[self.hash(name) % len(self.table)]
        return found

    def hash(self, data: bytes) -> int:
        """Return the Toeplitz hash of addresses and ports, 36 bytes at most."""
        if not self._rows:
            self._rows = _rows(self._key)
        result = 0
        for row, byte in zip(self._rows, data, strict=False):
            result ^= row[byte]
        return result


def _flow(frame: memoryview) -> bytes:
    """Return the addresses, and TCP's ports, of an IP frame; nothing for another frame."""
    kind = bytes(frame[12:14])
    if kind == _IPV4 and len(frame) >= 34:
        size = (frame[14] & 0xF) * 4
        fragment = frame[20] & 0x3F or frame[21]
        if frame[23] == _TCP and not fragment and len(frame) >= 14 + size + 4:
            return bytes(frame[26:34]) + bytes(frame[14 + size : 18 + size])
        return bytes(frame[26:34])
    if kind == _IPV6 and len(frame) >= 54:
        return bytes(frame[22 : 58 if frame[20] == _TCP and len(frame) >= 58 else 54])
    return b""


def _rows(key: bytes) -> list[list[int]]:
    """Return, for each byte of the input and each of its values, what it contributes to the hash."""
    bits = int.from_bytes(key, "big")
    rows = []
    for position in range(KEY_SIZE - 4):
        windows = [bits >> (8 * KEY_SIZE - 32 - 8 * position - bit) & 0xFFFFFFFF for bit in range(8)]
        row = [0] * 256
        for value in range(1, 256):
            low = value & -value
            row[value] = row[value ^ low] ^ windows[7 - low.bit_length() + 1]
        rows.append(row)
    return rows
