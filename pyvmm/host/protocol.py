"""The protocol on the emulated host's serial port: frames on numbered streams.

The *outer* end is on the user's machine (a command, or the daemon that keeps a host), the *inner* end is the agent,
first process of the emulated host. A stream is one running command or one forwarded socket connection; its channels
are the command's descriptors. No I/O here: bytes in, frames out.

    outer                                                inner
      | <------------------------------------ HELLO 0     |   the agent is up
      | START 7 {argv, env, cwd, tty} ------------------> |
      | <---------------------------------- STARTED 7     |   or REFUSED 7 "no such program"
      | DATA 7/0 "ls\n" --------------------------------> |   stdin
      | <-------------------------- DATA 7/1 "a b c\n"    |   stdout
      | CREDIT 7/1 6 -----------------------------------> |   6 bytes are written: window reopened
      | <--------------------- END 7/1, END 7/2, EXIT 7 0 |

Flow control: a sender has at most WINDOW bytes of a channel under way that the receiver has not given back as
CREDIT, so a console with much output blocks instead of filling memory, and one channel cannot stop another.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pyvmm.errors import HostError

HEADER = struct.Struct("<IBBHI")  # stream, kind, channel, zero, length of the payload
MAX_PAYLOAD = 256 << 10  # a START with a big environment; DATA is cut into CHUNK
CHUNK = 32 << 10
WINDOW = 256 << 10  # bytes of one channel under way

STDIN, STDOUT, STDERR, TERMINAL = range(4)  # channels of a command; a socket has only channel 0
CHANNELS = 4


class ProtocolError(HostError):
    """The other end broke the protocol: the connection is unusable."""


class Kind(IntEnum):
    """The kinds of frames, each with who sends it: the outer (o) or the inner (i) end."""

    HELLO = 1  # i: the agent has started; payload: JSON about itself
    START = 2  # o: start a command; payload: JSON, see agent.Request
    CONNECT = 3  # o: connect to a Unix socket inside; payload: its path
    STARTED = 4  # i: a START or CONNECT succeeded
    REFUSED = 5  # i: it failed; payload: one line of text; the stream ends
    DATA = 6  # o, i
    END = 7  # o, i: no more DATA on this channel
    CREDIT = 8  # o, i: payload u32, bytes of DATA consumed
    SIGNAL = 9  # o: payload u32, signal number, for the command's process group
    RESIZE = 10  # o: payload u16 rows, u16 columns
    EXIT = 11  # i: payload i32, as subprocess returns it (-9: killed by signal 9); the stream ends
    CLOSE = 12  # o: the stream's client has disconnected: end it; i: the socket is closed
    POWEROFF = 13  # o: end the emulated host
    STOPPED = 15  # i: payload u32, the signal that stopped the command; SIGNAL with SIGCONT continues it
    BROKEN = 16  # o: the channel's reader has closed it: the command gets a broken pipe
    ENDED = 17  # i: as EXIT, which follows once all output of the command was consumed
    FILE = 18  # o: a descriptor comes with the next DATA; payload: JSON {path, flags}, to be opened inside
    NUDGE = 14  # o: no operation, but it causes an interrupt inside; see client.NUDGE_EVERY


_KINDS = frozenset(Kind)
_SIGNED = (Kind.EXIT, Kind.ENDED)


@dataclass(slots=True)
class Frame:
    """One frame: a stream, a kind, a channel and a payload."""

    kind: Kind
    stream: int = 0
    channel: int = 0
    payload: bytes = b""

    def build(self) -> bytes:
        """Return the frame as bytes."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ProtocolError(f"a {self.kind.name} of {len(self.payload)} bytes is too long")
        return HEADER.pack(self.stream, self.kind, self.channel, 0, len(self.payload)) + self.payload

    @property
    def number(self) -> int:
        """Return the payload of CREDIT, SIGNAL, STOPPED or EXIT as a number."""
        if len(self.payload) != 4:
            raise ProtocolError(f"a {self.kind.name} of {len(self.payload)} bytes, needs 4")
        return int.from_bytes(self.payload, "little", signed=self.kind in _SIGNED)

    @classmethod
    def of_number(cls, kind: Kind, stream: int, number: int, channel: int = 0) -> Frame:
        """Make a CREDIT, SIGNAL or EXIT."""
        return cls(kind, stream, channel, number.to_bytes(4, "little", signed=kind in _SIGNED))


class Decoder:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Return the frames that `data` completes. Raises ProtocolError at the first invalid one."""
        self._pending += data
        position = 0
        try:
            while len(self._pending) - position >= HEADER.size:
                stream, kind, channel, zero, length = HEADER.unpack_from(self._pending, position)
                if kind not in _KINDS or zero or channel >= CHANNELS or length > MAX_PAYLOAD:
                    raise ProtocolError(f"emulated host: not a frame: kind {kind}, channel {channel}, {length} bytes")
                end = position + HEADER.size + length
                if len(self._pending) < end:
                    break
                payload = bytes(self._pending[position + HEADER.size : end])
                position = end
                yield Frame(Kind(kind), stream, channel, payload)
        finally:
            del self._pending[:position]


class SendWindow:
    """The flow control window of one channel at its sender: bytes that it may still send."""

    def __init__(self) -> None:
        self.left = WINDOW

    def sent(self, count: int) -> None:
        """Shrink the window by `count` bytes sent."""
        self.left -= count
        if self.left < 0:
            raise ProtocolError("sent past the window")

    def credited(self, count: int) -> None:
        """Extend the window by `count` bytes that the receiver has consumed."""
        self.left += count
        if self.left > WINDOW:
            raise ProtocolError(f"emulated host: credit for {count} bytes that were never sent")


class ReceiveWindow:
    """The flow control window of one channel at its receiver: bytes received and not yet written."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self.owed = 0  # bytes consumed and not yet returned as credit

    def received(self, data: bytes) -> None:
        """Count received DATA. Raises ProtocolError if the sender overran its window."""
        if len(self.pending) + self.owed + len(data) > WINDOW:
            raise ProtocolError("emulated host: the other end sent past its window")
        self.pending += data

    def taken(self, count: int) -> int:
        """Count `count` bytes as written. Returns the credit to send now (0: later, in one frame)."""
        del self.pending[:count]
        self.owed += count
        if self.owed < WINDOW // 4 and self.pending:
            return 0
        credit, self.owed = self.owed, 0
        return credit
