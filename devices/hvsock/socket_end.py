"""A host's end of a connection on a Unix stream socket, with bounded buffers, on the loop."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.loop import Loop, Timer

if TYPE_CHECKING:
    from pyvmm.devices.hvsock.connection import Connection

FLUSH_SECONDS = 30.0
"""Seconds for which a closed connection's last bytes wait for a program that does not read them."""


class SocketEnd:
    """Owns `connection`, a connected stream socket. What does not fit into the socket's buffer waits: no more than
    what the guest's side gives after `write` has returned False, one batch of packets.
    """

    def __init__(self, loop: Loop, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._socket = connection
        self._output = bytearray()
        self._finishing = False  # shut down when the output is empty
        self._closing: Timer | None = None  # closed when the output is empty, or then
        self._peer: Connection | None = None
        self._writing = False

    def start(self, connection: Connection) -> None:
        self._peer = connection
        self.want(True)

    def want(self, on: bool) -> None:
        if self._socket.fileno() < 0:
            return
        if on and self._peer is not None:
            self._loop.add_reader(self._socket.fileno(), self._peer.host_readable)
        else:
            self._loop.remove_reader(self._socket.fileno())

    def read(self, limit: int) -> bytes | None:
        try:
            return self._socket.recv(limit)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._lose(error)
            return None

    def write(self, data: bytes) -> bool:
        self._output += data
        if not self._writing:
            self._flush()
        return not self._output

    def finish(self) -> None:
        self._finishing = True
        self._shut_if_empty()

    @property
    def gone(self) -> bool:
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def close(self, *, flush: bool) -> None:
        self._peer = None
        self.want(False)
        if self._output and flush and self._socket.fileno() >= 0:
            self._closing = self._loop.after(FLUSH_SECONDS, self._close)
        else:
            self._close()

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket.fileno(), self._writable)
            return
        except OSError as error:
            self._lose(error)
            return
        self._stop_writing()
        self._shut_if_empty()
        if self._closing is not None:
            self._close()

    def _writable(self) -> None:
        self._flush()
        if not self._output and self._peer is not None:
            self._peer.host_drained()

    def _shut_if_empty(self) -> None:
        if self._finishing and not self._output and self._socket.fileno() >= 0:
            with suppress(OSError):  # the other side is gone: the next read finds that
                self._socket.shutdown(socket.SHUT_WR)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    def _lose(self, error: OSError) -> None:
        peer = self._peer
        self._output.clear()
        self._close()
        if peer is not None:
            peer.host_lost(f"the host's end: {error.strerror or error}")

    def _close(self) -> None:
        self._peer = None
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._stop_writing()
            self._socket.close()
