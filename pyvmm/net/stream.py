"""Frames over a Unix stream socket: a u32 length, big-endian, before each, in both directions.

Source: QEMU net/stream.c; passt(1). There is no handshake.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct

from pyvmm.net.link import FRAME_LIMIT, FdLink, Frames, Poller
from pyvmm.wire import Buffer

_LENGTH = Struct(">I")
READ_SIZE = 256 << 10
"""Bytes read at once: what a batch for the guest holds, twice."""
_PARTS_LIMIT = 1000
"""Parts given to writev(2) at once, which takes 1024 (IOV_MAX)."""
_SO_SNDBUFFORCE = 32
SOCKET_BUFFER = 4 << 20
"""Bytes wanted in the socket's queues: the kernel gives what net.core.wmem_max allows."""


class StreamLink(FdLink):
    """The link over a connected socket, which it owns. `kind` and `place` are for people."""

    def __init__(self, loop: Poller, connection: socket.socket, kind: str, place: str = "") -> None:
        super().__init__(loop, connection.fileno())
        self.kind, self.place = kind, place
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._start = self._end_ = 0  # of the bytes in the buffer that are no whole frame yet
        self._rest: bytes = b""  # of a frame that was written in part

    def read(self) -> Frames:
        left = self._end_ - self._start
        if left and self._start:
            self._buffer[:left] = self._buffer[self._start : self._end_]
        self._start = 0
        try:
            count = self._socket.recv_into(self._view[left:])
        except BlockingIOError:
            self._end_ = left
            return []
        except OSError as error:
            self.ended(error.strerror or str(error))
            return []
        if not count:
            self.ended("it has closed the connection")
            return []
        self._end_ = end = left + count
        return self._cut(end)

    def _cut(self, end: int) -> Frames:
        """Return the whole frames in the buffer up to `end`."""
        position, frames = 0, Frames()
        while end - position >= 4:
            (size,) = _LENGTH.unpack_from(self._buffer, position)
            if not 0 < size <= FRAME_LIMIT:
                self.ended(f"it sent a frame of {size} bytes")
                return []
            if end - position < 4 + size:
                break
            frames.append(self._view[position + 4 : position + 4 + size])
            position += 4 + size
        self._start = position
        return frames

    def write(self, frames: Sequence[list[Buffer]]) -> int:
        if not self.alive:
            return len(frames)
        if self._rest and not self._write_rest():
            return 0
        taken = 0
        while taken < len(frames):
            parts: list[Buffer] = []
            count = 0
            for frame in frames[taken:]:
                if parts and len(parts) + len(frame) + 1 > _PARTS_LIMIT:
                    break
                parts += [_LENGTH.pack(sum(map(len, frame))), *frame]
                count += 1
            done = self._writev(parts)
            if done < 0:
                return len(frames)
            size = sum(map(len, parts))
            if done == size:
                taken += count
                continue
            taken += self._keep_rest(frames[taken:], done)
            self.await_room()
            break
        return taken

    def has_room(self) -> None:
        self._loop.remove_writer(self.fd)
        if not self._rest or self._write_rest():
            self._room()

    def _keep_rest(self, frames: Sequence[list[Buffer]], done: int) -> int:
        """Copy the rest of the frame that was written in part; return how many frames count as taken."""
        for number, frame in enumerate(frames):
            size = 4 + sum(map(len, frame))
            if done < size:
                if not done:
                    return number
                self._rest = b"".join([_LENGTH.pack(size - 4), *frame])[done:]
                return number + 1
            done -= size
        return len(frames)

    def _write_rest(self) -> bool:
        done = self._writev([self._rest])
        if done < 0:
            return True  # the link has ended: nothing is left to do
        self._rest = self._rest[done:]
        if self._rest:
            self.await_room()
        return not self._rest

    def _writev(self, parts: list[Buffer]) -> int:
        """Return the number of bytes written; -1 if the link has ended."""
        try:
            return os.writev(self.fd, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.ended(error.strerror or str(error))
            return -1

    def close_fd(self) -> None:
        self._socket.close()


def widen(connection: socket.socket) -> None:
    """Ask for a large queue of what this end sends: three frames of 64 KiB fill one of the usual size, and passt
    drops what finds its own full, and sends it all again later.
    """
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    with suppress(OSError):  # beyond net.core.wmem_max: for root only
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER)
