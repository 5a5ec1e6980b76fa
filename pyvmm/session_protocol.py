"""The protocol of sessions: the host's client and the guest's program (images/session_program.py) exchange frames.

A session is one command and one connection. Frames in both directions: kind u32, length u32, payload.

    host                                                    guest
      START  flags u32, window 8 bytes, argc u32, argv ->        fork, setsid, execve(argv[0]); with or without tty
      INPUT  bytes; none: the end                      ->        one at a time, until
                                                       <-  TAKEN         it was written, or its reader is gone
      SIGNAL number u32                                ->        to the command's process group
      WINDOW struct winsize                            ->        SIGWINCH, by the kernel
                                                       <-  OUTPUT, ERRORS as they are written; ERRORS without tty only
                                                       <-  EXIT          status u32, as of wait4; the last frame
                                                       <-  FAILED        errno u32: the command was not started

The end of the connection hangs the command up: SIGHUP to its group. What the guest sends is not to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct, pack

from pyvmm.errors import ConfigError, GuestProtocolError

PORT = 0x7079
"""The guest's port on which its program for sessions listens."""


class Kind(IntEnum):
    """Kinds of frames."""

    START = 0
    INPUT = 1
    SIGNAL = 2
    WINDOW = 3
    OUTPUT = 4
    ERRORS = 5
    TAKEN = 6
    EXIT = 7
    FAILED = 8


TTY = 1
"""Flag of START."""

START_LIMIT = 60 << 10
"""Bytes of START."""
INPUT_LIMIT = 32 << 10
"""Bytes of an INPUT."""
OUTPUT_LIMIT = 32 << 10
"""Bytes of an OUTPUT or ERRORS."""
WORDS_LIMIT = 1000
"""Words of a command."""

HEADER = Struct("<II")

_SIZES = {Kind.OUTPUT: OUTPUT_LIMIT, Kind.ERRORS: OUTPUT_LIMIT, Kind.TAKEN: 0, Kind.EXIT: 4, Kind.FAILED: 4}


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a frame to the guest."""
    return HEADER.pack(kind, len(payload)) + payload


def start_frame(words: Sequence[bytes], *, window: tuple[int, int] | None = None) -> bytes:
    """Return a START frame; with a `window` of rows and columns the command gets a terminal. The first word is a
    path.

    Raises ConfigError if it is too long.
    """
    if not 1 <= len(words) <= WORDS_LIMIT:
        raise ConfigError(f"a command of {len(words)} words, the guest takes {WORDS_LIMIT}: put it into a script")
    if any(b"\0" in word for word in words):
        raise ConfigError("the command holds a zero byte; remove it")
    rows, columns = window or (0, 0)
    head = pack("<IHHHHI", TTY if window is not None else 0, rows, columns, 0, 0, len(words))
    payload = head + b"".join(word + b"\0" for word in words)
    if len(payload) > START_LIMIT:
        raise ConfigError(f"the command is {len(payload)} bytes long, the guest takes {START_LIMIT}; shorten it")
    return frame(Kind.START, payload)


def window_frame(rows: int, columns: int) -> bytes:
    """Return the frame for a new size of the terminal."""
    return frame(Kind.WINDOW, pack("<HHHH", rows, columns, 0, 0))


class FrameReader:
    """Splits what the guest sends into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Return the frames that `data` completes. Raises GuestProtocolError at the first that cannot be one."""
        self._pending += data
        position = 0
        try:
            while len(self._pending) - position >= HEADER.size:
                number, length = HEADER.unpack_from(self._pending, position)
                most = _SIZES.get(number, -1)
                if length > most or (most == 4 and length != 4):
                    raise GuestProtocolError(f"session: no frame: kind {number}, {length} bytes")
                end = position + HEADER.size + length
                if len(self._pending) < end:
                    return
                payload = bytes(self._pending[position + HEADER.size : end])
                position = end
                yield Kind(number), payload
        finally:
            del self._pending[:position]
