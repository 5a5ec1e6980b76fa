"""A client of NBD (network block device): what QEMU's storage daemon serves its images by, over a Unix socket.

Source: NBD doc/proto.md: fixed newstyle handshake, NBD_OPT_GO, simple replies.

    client                                          server
                                               <-  NBDMAGIC IHAVEOPT flags u16
      flags u32; IHAVEOPT GO u32 length u32: name  ->
                                               <-  reply magic, option, INFO, length: size u64, flags u16
                                               <-  reply magic, option, ACK
      magic flags u16 type u16 cookie u64 offset u64 length u32 [data]  ->
                                               <-  magic error u32 cookie u64 [data]

A connection carries one request at a time; `NbdImage` has one for each thread of the device, so that requests overlap
all the same. Guest memory goes into and out of the socket without a copy of ours (writev, readv).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from queue import LifoQueue
from struct import Struct, pack, unpack, unpack_from

from pyvmm.disks.raw import IOV_MAX
from pyvmm.errors import ConfigError, HostError
from pyvmm.views import after, total

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
NO_HOLE = 2
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 4, 32, 64

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_GO, _ACK, _INFO = 7, 1, 3
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_REQUEST = Struct(">IHHQQI")
_REQUEST_MAGIC, _SIMPLE_REPLY = 0x25609513, 0x67446698
_ANSWER_LIMIT = 64 << 10
LONGEST = 32 << 20
"""Bytes of the longest request that every server takes."""


class Connection:
    """One connection to the export `name`, after the handshake. `size` and `flags` are the export's.

    Raises HostError if the server refuses, or does not speak NBD; later failures are OSErrors.
    """

    def __init__(self, connected: socket.socket, name: str) -> None:
        self._socket = connected
        self._cookie = 0
        self.size = self.flags = 0
        try:
            self._shake_hands(name)
        except OSError as error:
            raise HostError(f"the storage daemon ended the connection: {error}") from error

    @classmethod
    def shaken(cls, connected: socket.socket, size: int, flags: int) -> Connection:
        """Return a connection whose handshake another process has done, with what it was told."""
        made = cls.__new__(cls)
        made._socket, made._cookie, made.size, made.flags = connected, 0, size, flags
        return made

    def _shake_hands(self, name: str) -> None:
        magic, option_magic, flags = unpack(">8s8sH", self._take(18))
        if (magic, option_magic) != (_MAGIC, _OPTION_MAGIC) or not flags & _FIXED_NEWSTYLE:
            raise HostError("the storage daemon does not speak NBD")
        label = name.encode()
        data = pack(">I", len(label)) + label + pack(">H", 0)
        head = pack(">I8sII", _FIXED_NEWSTYLE | flags & _NO_ZEROES, _OPTION_MAGIC, _GO, len(data))
        self._socket.sendall(head + data)
        while True:
            reply_magic, _, kind, length = unpack(">QIII", self._take(20))
            if reply_magic != _REPLY_MAGIC or length > _ANSWER_LIMIT:
                raise HostError("the storage daemon does not speak NBD")
            data = self._take(length)
            if kind == _ACK:
                break
            if kind & 1 << 31:
                text = data.decode("utf-8", "replace")
                raise HostError(f"the storage daemon refuses the export {name}: {text or kind & 0xFFFF}")
            if kind == _INFO and length >= 12 and not unpack_from(">H", data)[0]:
                self.size, self.flags = unpack_from(">QH", data, 2)
        if not self.flags & HAS_FLAGS:
            raise HostError("the storage daemon does not tell an export's size")

    def request(
        self, kind: int, offset: int, length: int, views: Sequence[memoryview] = (), *, flags: int = 0
    ) -> None:
        """Send one request, with `views` for READ and WRITE, and wait for its reply. Raises OSError."""
        self._cookie += 1
        head = memoryview(_REQUEST.pack(_REQUEST_MAGIC, flags, kind, self._cookie, offset, length))
        self._send([head, *views] if kind == WRITE else [head])
        magic, error, cookie = unpack(">IIQ", self._take(16))
        if magic != _SIMPLE_REPLY or cookie != self._cookie:
            raise OSError(errno.EPROTO, "the storage daemon broke the protocol")
        if error:
            raise OSError(error, os.strerror(error))
        if kind == READ:
            self._fill(list(views))

    def _send(self, views: list[memoryview]) -> None:
        while views:
            sent = os.writev(self._socket.fileno(), views[:IOV_MAX])
            views = after(views, sent)

    def _fill(self, views: list[memoryview]) -> None:
        while views:
            got = os.readv(self._socket.fileno(), views[:IOV_MAX])
            if not got:
                raise OSError(errno.EPIPE, "the storage daemon ended")
            views = after(views, got)

    def _take(self, size: int) -> bytes:
        data = bytearray(size)
        if size:
            self._fill([memoryview(data)])
        return bytes(data)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def drop(self) -> None:
        """Close the socket. Harmless twice."""
        self._socket.close()

    def close(self) -> None:
        """End the connection."""
        try:
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass  # the server has ended
        self._socket.close()


class NbdImage:
    """An `Image` served over NBD by `connections`, of which each thread borrows one at a time.

    `end()` ends the server, after the connections.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        path: str,
        format: str,
        end: Callable[[], None],
    ) -> None:
        self._all = list(connections)
        self._free: LifoQueue[Connection] = LifoQueue()
        for each in connections:
            self._free.put(each)
        self.path = path
        self.format = format
        self.size = connections[0].size
        self.flags = connections[0].flags
        self.read_only = bool(self.flags & READ_ONLY)
        self._end = end

    def _request(self, kind: int, offset: int, length: int, views: Sequence[memoryview] = (), flags: int = 0) -> None:
        connection = self._free.get()
        try:
            connection.request(kind, offset, length, views, flags=flags)
        finally:
            self._free.put(connection)

    def try_read(self, views: Sequence[memoryview], offset: int) -> bool:
        """Return False: each request waits for the daemon."""
        return False

    try_write = try_read

    def read(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views` from `offset` on."""
        self._request(READ, offset, total(views), views)

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views` at `offset`."""
        self._request(WRITE, offset, total(views), views)

    def flush(self) -> None:
        """Make durable what was written."""
        if self.flags & SEND_FLUSH:
            self._request(FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        """Have the range freed."""
        if self.flags & SEND_TRIM:
            self._in_pieces(TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes."""
        if self.flags & SEND_WRITE_ZEROES:
            self._in_pieces(WRITE_ZEROES, offset, length, 0 if unmap else NO_HOLE)
        else:
            zeroes = memoryview(bytes(min(length, 1 << 20)))
            for at in range(offset, offset + length, len(zeroes)):
                self.write([zeroes[: offset + length - at]], at)

    def _in_pieces(self, kind: int, offset: int, length: int, flags: int = 0) -> None:
        end = offset + length
        for at in range(offset, end, LONGEST):
            self._request(kind, at, min(LONGEST, end - at), flags=flags)

    def resize(self, size: int) -> None:
        """Refuse: the daemon allows no change while it exports the image."""
        raise ConfigError(f"{self.path}: a {self.format} image cannot be resized while a machine uses it")

    def close(self) -> None:
        """Close the connections and end the server."""
        for each in self._all:
            each.close()
        self._end()
