"""Sockets that are forwarded into the emulated host while a command runs there.

`Forwards` listens on the outer side, and connects each client to a Unix socket inside by a stream of its own. A
machine's `vsock` goes both ways: `dial_forward` makes the connections from inside to outside.
"""

from __future__ import annotations

import contextlib
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb_place import Place
from pyvmm.host.endpoint import Endpoint
from pyvmm.host.inside import inner_socket
from pyvmm.host.protocol import Frame, Kind
from pyvmm.unix_socket import ListeningSocket

if TYPE_CHECKING:
    from pyvmm.host.dial_forward import DialForward
    from pyvmm.tcp_socket import TcpListener

QUEUE = 8  # connections to a forwarded socket that are not accepted yet


class Forward:
    """Listens at one place of the outer side. Raises HostError if it cannot.

    `half_close`: a client may go on after one direction of its connection has ended.
    """

    def __init__(self, place: Place, *, half_close: bool = False) -> None:
        self.inner = inner_socket(place)
        self.half_close = half_close
        self.listener: ListeningSocket | TcpListener
        try:
            if isinstance(place, Path):
                self.listener = ListeningSocket(place.absolute(), QUEUE)
            else:
                from pyvmm.tcp_socket import TcpListener

                self.listener = TcpListener(place, QUEUE)
        except ConfigError as error:
            raise HostError(str(error)) from error

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()


class Forwards:
    """All forwarded sockets of one command and their connections, each a stream after `first`."""

    def __init__(self, endpoint: Endpoint, first: int) -> None:
        self._endpoint = endpoint
        self._next = first
        self._listeners: list[Forward] = []
        self._connections: dict[int, socket.socket] = {}  # by stream
        self._vsock: set[int] = set()  # streams of a machine's vsock
        self._half_closed: set[int] = set()  # streams of which one direction has ended
        # Descriptors that clients sent, disks for example: open, and locked, as long as the command runs.
        self._files: list[int] = []
        self._dialled: DialForward | None = None

    def listen(self, place: Place, *, half_close: bool = False) -> None:
        """Listen at `place`. Raises HostError if that cannot be done."""
        forward = Forward(place, half_close=half_close)
        self._listeners.append(forward)
        self._endpoint.watch(forward.listener.fileno(), partial(self._accept, forward))

    def connect_vsock(self, path: Path) -> None:
        """Listen at `path` for a machine's vsock, and connect the guest to the programs at `path`_PORT."""
        from pyvmm.host.dial_forward import DialForward

        self.listen(path, half_close=True)
        self._dialled = DialForward(self._endpoint, path, self._add_vsock, self._replace, self._drop)
        self._dialled.offer()

    def handle(self, frame: Frame) -> None:
        """Take a frame of a connection's stream; one of an ended connection is ignored."""
        stream = frame.stream
        connection = self._connections.get(stream)
        if connection is None:
            return
        match frame.kind:
            case Kind.STARTED:
                # A client may close only its sending side; one that has disconnected is noticed on writing.
                self._endpoint.source(
                    stream,
                    0,
                    connection.fileno(),
                    lambda: self._end_direction(stream, shut=False),
                    files=None if stream in self._vsock else self._files,
                )
            case Kind.REFUSED | Kind.CLOSE:
                self._drop(stream)

    def close(self) -> None:
        """Stop listening, and end all connections."""
        for forward in self._listeners:
            self._endpoint.unwatch(forward.listener.fileno())
            forward.close()
        self._listeners.clear()
        if self._dialled is not None:
            self._dialled.close()
        for stream in list(self._connections):
            self._drop(stream)
        while self._files:
            os.close(self._files.pop())

    def _accept(self, forward: Forward) -> None:
        try:
            connection, _ = forward.listener.socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        stream = self._add_vsock(connection) if forward.half_close else self._add(connection)
        self._endpoint.send(Frame(Kind.CONNECT, stream, payload=os.fsencode(forward.inner)))

    def _add(self, connection: socket.socket) -> int:
        """Give a connection a stream, which ends with the command's side of it."""
        stream = self._new_stream(connection)
        self._endpoint.sink(stream, 0, connection.fileno(), lambda: self._drop(stream))
        return stream

    def _add_vsock(self, connection: socket.socket) -> int:
        """Give a connection a stream that goes on when one direction has ended."""
        stream = self._new_stream(connection)
        self._vsock.add(stream)
        self._endpoint.sink(stream, 0, connection.fileno(), lambda: self._end_direction(stream, shut=True))
        return stream

    def _new_stream(self, connection: socket.socket) -> int:
        stream, self._next = self._next, self._next + 1
        self._connections[stream] = connection
        return stream

    def _replace(self, stream: int, connection: socket.socket) -> None:
        self._connections[stream].close()
        self._connections[stream] = connection
        self._endpoint.redirect(stream, 0, connection.fileno())

    def _end_direction(self, stream: int, *, shut: bool) -> None:
        """Note that the stream's command (`shut`), or its client, sends no more."""
        connection = self._connections.get(stream)
        if connection is None:
            return
        if stream in self._half_closed:
            self._drop(stream)
            return
        self._half_closed.add(stream)
        if shut:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _drop(self, stream: int) -> None:
        if connection := self._connections.pop(stream, None):
            self._half_closed.discard(stream)
            self._vsock.discard(stream)
            self._endpoint.forget(stream)
            connection.close()
            self._endpoint.send(Frame(Kind.CLOSE, stream))
