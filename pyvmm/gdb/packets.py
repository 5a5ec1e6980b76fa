"""Framing of the remote protocol: packets with a checksum, acknowledgements, and the interrupt byte.

    $ body # two hex digits: the sum of the body's bytes, modulo 256          + received, - send it again
    0x03   the debugger's user pressed Ctrl-C

In a body `}` escapes the next byte, which is xored with 0x20. No I/O here: bytes in, messages out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

PACKET_SIZE: Final = 0x4000
"""Longest body of a packet in bytes, announced to the debugger by `PacketSize`."""

_START, _END, _ESCAPE, _INTERRUPT = b"$", b"#", 0x7D, 0x03
_MARK: Final = 0x20
_ESCAPED: Final = frozenset(b"$#}*")

Message = bytes | Literal["interrupt", "ack", "nak", "damaged"]
"""A packet's body without escapes, or what else the debugger sends. `damaged`: a wrong checksum or too long."""


class PacketReader:
    """Splits the debugger's bytes into messages. Holds at most one packet that is not complete."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skipping = False  # the rest of a packet that was too long

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that `data` completes. Bytes between packets that mean nothing are dropped."""
        self._pending += data
        while self._pending:
            if self._skipping:
                end = self._pending.find(_END)
                if end < 0:
                    self._pending.clear()
                    return
                del self._pending[: end + 1]  # the checksum's digits are dropped as bytes between packets
                self._skipping = False
                yield "damaged"
                continue
            first = self._pending[0]
            if first != _START[0]:
                del self._pending[0]
                if first == _INTERRUPT:
                    yield "interrupt"
                elif first in b"+-":
                    yield "ack" if first == b"+"[0] else "nak"
                continue
            end = self._pending.find(_END)
            if end > PACKET_SIZE or (end < 0 and len(self._pending) > PACKET_SIZE):
                self._skipping = True
                continue
            if end < 0 or len(self._pending) < end + 3:
                return
            body, digits = bytes(self._pending[1:end]), bytes(self._pending[end + 1 : end + 3])
            del self._pending[: end + 3]
            yield unescape(body) if digits.lower() == b"%02x" % (sum(body) & 0xFF) else "damaged"


def frame(body: bytes) -> bytes:
    """Return a packet with `body`, whose special bytes are escaped already (`escape`)."""
    return b"$%b#%02x" % (body, sum(body) & 0xFF)


def escape(data: bytes) -> bytes:
    """Escape binary data for a body."""
    if not _ESCAPED.intersection(data):
        return data
    return b"".join(bytes([_ESCAPE, each ^ _MARK]) if each in _ESCAPED else bytes([each]) for each in data)


def unescape(body: bytes) -> bytes:
    """Return the body without escapes. An escape at the end stands for nothing."""
    if _ESCAPE not in body:
        return body
    head, *rest = body.split(bytes([_ESCAPE]))
    return head + b"".join(bytes([part[0] ^ _MARK]) + part[1:] for part in rest if part)
