"""The monitor's server on the machine's loop: several clients on Unix sockets, none of which can block the machine.

    s = ControlServer(loop, machine, "/run/user/1000/pyvmm/vm.sock"); s.start(); ...; s.close()

    socket, socket ... (Listener) --accept--> _Client ... <--send-- ControlServer: an event once, for all <-- machine

Each client costs at most one request of input and `OUTPUT_LIMIT` of output. While a client does not read its output,
its input is not read either, so only events accumulate; past the limit it is dropped. Long input is processed a few
commands a turn, so that devices are served in between.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from pyvmm.bounded_connection import BoundedConnection, Limits
from pyvmm.control import events as trace
from pyvmm.control.commands import MonitoredMachine, dispatch
from pyvmm.control.listener import Listener
from pyvmm.control.protocol import QmpSession, encode_event
from pyvmm.control.stream import Ready, Send, Stream, Timing
from pyvmm.control.throttle import Throttle
from pyvmm.loop import Loop

OUTPUT_LIMIT = 1 << 20
"""Most bytes of output queued for a client. Some ten thousand events: hours of a quiet guest."""

LIMITS = Limits(chunk=16 << 10, steps=8, pause=64 << 10, seconds=0.01, output=OUTPUT_LIMIT)
"""A step is one command. A turn's seconds end it once the running command is done: a reset alone takes 40 ms."""

FILES_LIMIT = 4
"""Most descriptors that a client may have sent without `getfd`."""

CLIENT_LIMIT = 16
"""Most clients at once. Each is a descriptor and some buffers; more than a few means a leak in a script."""


class ControlServer:
    """The listening sockets at `places` (paths, or `Listener`s already listening) and their clients. All methods
    run on the loop's thread.
    """

    def __init__(self, loop: Loop, machine: MonitoredMachine, *places: str | os.PathLike[str] | Listener) -> None:
        self._loop = loop
        self._machine = machine
        self._places = places
        self._listeners: list[Listener] = []  # while it listens
        self._clients: list[_Client] = []
        self._numbers = count(1)
        self._answering = False
        self._closing = False
        self._throttle = Throttle(loop, self._emit)
        self._subscribed = False

    def start(self) -> None:
        """Start listening. ConfigError if a path is in use by another process, or is not a socket."""
        try:
            for place in self._places:
                self._listeners.append(place if isinstance(place, Listener) else Listener(self._loop, Path(place)))
                self._listeners[-1].open(self._on_accept)
        except BaseException:
            self.close()
            raise
        if not self._subscribed:
            self._subscribed = True
            self._machine.on_event(self._on_event)

    def close(self) -> None:
        """Stop listening, flush the clients' output, close the connections, remove the sockets. Harmless twice."""
        if not self._listeners:
            return
        if self._answering:  # a command ends the machine: its reply comes first
            self._closing = True
            return
        self._throttle.flush()
        for client in list(self._clients):
            client.finish()
            client.drop("the machine ends")
        while self._listeners:
            self._listeners.pop().close()

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_accept(self, connection: socket.socket, path: Path) -> None:
        if len(self._clients) >= CLIENT_LIMIT:
            connection.close()
            return
        client = _Client(self, connection, next(self._numbers))
        self._clients.append(client)
        if trace.connected.on:
            trace.connected(client.number, str(path))
        client.start()

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        """Send an event to all clients. Events that a command causes precede its reply, as in QEMU since 9.0."""
        if self._listeners:
            self._throttle(name, data)

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        if trace.emitted.on:
            trace.emitted(name, data)
        message = encode_event(name, data, time.time())
        for client in list(self._clients):
            if client.session.commanding:
                client.send(message)


class _Client:
    """One client's session and streams."""

    def __init__(self, server: ControlServer, connection: socket.socket, number: int) -> None:
        self.number = number
        self.session = QmpSession(self._dispatch)
        self._server = server
        self._loop = server._loop
        self._streams: dict[str, Stream] = {}
        self._pending_streams: dict[str, Callable[[Timing, Ready, Send], Stream]] = {}
        self._take: Callable[[socket.socket], None] | None = None  # whom the connection is given to
        self._connection = BoundedConnection(
            server._loop,
            connection,
            LIMITS,
            feed=self.session.feed,
            step=self._answer,
            closed=self._closed,
            waiting=lambda: self.session.waiting,
            files=FILES_LIMIT,
        )
        self.take_file = self._connection.take_file

    def start(self) -> None:
        self._connection.start()
        self.send(self.session.greeting())

    def _dispatch(self, name: str, arguments: dict[str, Any]) -> Any:
        if trace.command.on:
            trace.command(self.number, {"execute": name, "arguments": arguments})
        return dispatch(self._server._machine, name, arguments, self)

    def set_stream(self, what: str, make: Callable[[Timing, Ready, Send], Stream] | None) -> None:
        """Replace this client's stream of `what`, the new one from the command's reply on; None only ends it."""
        self._pending_streams.pop(what, None)
        before = self._streams.pop(what, None)
        if before is not None:
            before.close()
        if make is not None:
            self._pending_streams[what] = make

    def give_away(self, take: Callable[[socket.socket], None]) -> None:
        """Pass this client's connection to `take`, after the running command's reply. No events follow the reply.

        The client must send nothing between the command and its reply.
        """
        self._take = take

    def _give(self, take: Callable[[socket.socket], None]) -> None:
        if self._connection.queued:
            self.drop("does not read")
        elif self._connection.is_open:
            connection = self._connection.release()
            self._closed("given away")
            take(connection)

    def _start_streams(self) -> None:
        pending, self._pending_streams = self._pending_streams, {}
        if self._connection.is_open:
            for what, make in pending.items():
                self._streams[what] = make(self._loop, lambda: self._connection.is_ready, self._connection.send)

    def finish(self) -> None:
        """Flush the client's streams at the machine's end, as far as the socket accepts it."""
        for stream in list(self._streams.values()):
            stream.finish()

    def _answer(self) -> bool:
        """Process one request; False if there is none."""
        server = self._server
        replies: list[bytes] = []
        server._answering = True
        try:
            taken = self.session.step(
                lambda reply: replies.append(reply) if server._answering else self._send_deferred(reply)
            )
        finally:
            server._answering = False
        if not taken:
            return False
        for reply in replies:
            self._trace(reply)
        self._start_streams()  # before the client reads the reply, but the reply itself is not traced to it
        for reply in replies:
            self._connection.send(reply)
        if self._take is not None:
            self._give(self._take)
        if server._closing:
            server.close()
        if self.session.not_qmp:
            self.drop("does not speak QMP")
        return True

    def _send_deferred(self, reply: bytes) -> None:
        """Send the reply of a slow command, then process the requests that came meanwhile."""
        self.send(reply)
        if self._take is not None:
            self._give(self._take)
        else:
            self._connection.proceed()

    def send(self, message: bytes) -> None:
        self._trace(message)
        self._connection.send(message)

    def _trace(self, message: bytes) -> None:
        if self._connection.is_open and trace.respond.on:
            trace.respond(self.number, message.decode("ascii").rstrip())

    def drop(self, reason: str) -> None:
        """Close the connection. Data in the socket's buffer still reaches the client."""
        self._connection.close(reason)

    def _closed(self, reason: str) -> None:
        for what in list(self._streams):
            self.set_stream(what, None)
        if trace.disconnected.on:
            trace.disconnected(self.number, reason)
        self._server._clients.remove(self)
