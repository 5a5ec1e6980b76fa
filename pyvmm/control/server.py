"""The monitor's Unix sockets on the machine's loop: several clients, none of which can hold the machine up.

    s = ControlServer(loop, machine, "/run/user/1000/pyvmm/vm.sock"); s.start(); ...; s.close()

    socket, socket ... (Door) --accept--> _Client ... <--send-- ControlServer: an event once, for all <-- machine

Each client costs at most one request of input and `OUTPUT_LIMIT` of output. A client that does not read is not read
from either, so that only events can pile up; past the limit it is dropped. Long input is worked off a few commands a
turn, so that devices get theirs in between.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from pyvmm.control import events as trace
from pyvmm.control.commands import Controlled, dispatch
from pyvmm.control.door import Door
from pyvmm.control.protocol import Session, encode_event
from pyvmm.control.stream import Ready, Send, Stream, Timing
from pyvmm.control.throttle import Throttle
from pyvmm.loop import Loop

OUTPUT_LIMIT = 1 << 20
"""Bytes waiting for a client to read them. Some ten thousand events: hours of a quiet guest."""

OUTPUT_PAUSE = 64 << 10
"""Output waiting, from which on no more requests are taken from a client."""

CHUNK = 16 << 10
"""Bytes read from a client in one turn."""

COMMANDS_PER_TURN = 8
"""Commands run for a client before the loop's other callers have their turn."""

SECONDS_PER_TURN = 0.01
"""After so long as well, with the command that is running: a reset takes 40 ms by itself."""

CLIENT_LIMIT = 16
"""Clients at once. Each is a descriptor and some buffers; more than a few is a leak in somebody's script."""


class ControlServer:
    """The listening sockets at `places` (paths, or doors that are there already) and their clients. All methods
    belong to the loop's thread.
    """

    def __init__(self, loop: Loop, controlled: Controlled, *places: str | os.PathLike[str] | Door) -> None:
        self._loop = loop
        self._machine = controlled
        self._places = places
        self._doors: list[Door] = []  # while it listens
        self._clients: list[_Client] = []
        self._numbers = count(1)
        self._answering = False
        self._closing = False
        self._throttle = Throttle(loop, self._emit)
        self._listens = False

    def start(self) -> None:
        """Listen. ConfigError if another process listens there or something else is in the way."""
        try:
            for place in self._places:
                self._doors.append(place if isinstance(place, Door) else Door(self._loop, Path(place)))
                self._doors[-1].open(self._admit)
        except BaseException:
            self.close()
            raise
        if not self._listens:
            self._listens = True
            self._machine.on_event(self._happened)

    def close(self) -> None:
        """Stop listening, hand the clients what they have not read, hang up, remove the sockets. Twice is fine."""
        if not self._doors:
            return
        if self._answering:  # a command ends the machine: its reply comes first
            self._closing = True
            return
        self._throttle.flush()
        for client in list(self._clients):
            client.finish()
            client.drop("the machine ends")
        while self._doors:
            self._doors.pop().close()

    def __enter__(self) -> ControlServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, connection: socket.socket, path: Path) -> None:
        if len(self._clients) >= CLIENT_LIMIT:
            connection.close()
            return
        client = _Client(self, connection, next(self._numbers))
        self._clients.append(client)
        if trace.connected.on:
            trace.connected(client.number, str(path))
        client.start()

    def _happened(self, name: str, data: dict[str, Any]) -> None:
        """Send an event. What a command causes comes before its reply, as from QEMU since 9.0."""
        if self._doors:
            self._throttle(name, data)

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        if trace.emitted.on:
            trace.emitted(name, data)
        message = encode_event(name, data, time.time())
        for client in list(self._clients):
            if client.session.commanding:
                client.send(message)


class _Client:
    """One connection: its session and the bytes on their way out."""

    def __init__(self, server: ControlServer, connection: socket.socket, number: int) -> None:
        self.number = number
        self.session = Session(self._dispatch)
        self._server = server
        self._loop = server._loop
        self._socket = connection
        self._output = bytearray()
        self._open = True
        self._streams: dict[str, Stream] = {}
        self._beginning: dict[str, Callable[[Timing, Ready, Send], Stream]] = {}
        self._working = False  # a turn is posted: there may be whole requests left in the session
        connection.setblocking(False)

    def start(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self.send(self.session.greeting())

    def _dispatch(self, name: str, arguments: dict[str, Any]) -> Any:
        if trace.command.on:
            trace.command(self.number, {"execute": name, "arguments": arguments})
        return dispatch(self._server._machine, name, arguments, self)

    def watch(self, what: str, make: Callable[[Timing, Ready, Send], Stream] | None) -> None:
        """Begin a stream in place of the one this client had of `what`, with the command's reply; None for none."""
        self._beginning.pop(what, None)
        before = self._streams.pop(what, None)
        if before is not None:
            before.close()
        if make is not None:
            self._beginning[what] = make

    def _begin_streams(self) -> None:
        beginning, self._beginning = self._beginning, {}
        if self._open:
            for what, make in beginning.items():
                self._streams[what] = make(self._loop, self._takes_more, self._send_quietly)

    def finish(self) -> None:
        """The machine ends: send what its streams still hold, as far as the socket takes it."""
        for stream in list(self._streams.values()):
            stream.finish()

    def _takes_more(self) -> bool:
        return self._open and len(self._output) <= OUTPUT_PAUSE

    def _send_quietly(self, message: bytes) -> None:
        """Send without an event: one for each event would never end."""
        if not self._open:
            return
        self._output += message
        self._flush()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.drop(str(error))
            return
        if not data:
            self.drop("hung up")
            return
        self.session.feed(data)
        self._work()

    def _work(self) -> None:
        """Answer a few requests; come back for the rest, after others and once the client has read its replies."""
        self._working = False
        until = time.monotonic() + SECONDS_PER_TURN
        for _ in range(COMMANDS_PER_TURN):
            if not self._open:
                return
            if len(self._output) > OUTPUT_PAUSE:
                break
            if not self._answer():
                if not self.session.waiting:
                    self._loop.add_reader(self._socket.fileno(), self._readable)
                return
            if time.monotonic() > until:
                break
        if self._open:
            self._loop.remove_reader(self._socket.fileno())
            if len(self._output) <= OUTPUT_PAUSE:
                self._working = True
                self._loop.post(self._work)

    def _answer(self) -> bool:
        """Take one request; False when there is none."""
        server = self._server
        replies: list[bytes] = []
        server._answering = True
        try:
            taken = self.session.step(lambda reply: replies.append(reply) if server._answering else self._late(reply))
        finally:
            server._answering = False
        if not taken:
            return False
        if self.session.waiting:
            self._loop.remove_reader(self._socket.fileno())
        for reply in replies:
            self._trace(reply)
        self._begin_streams()  # before the client can know of it, but the reply itself is nothing to follow
        for reply in replies:
            self._put(reply)
        if server._closing:
            server.close()
        if self.session.hopeless:
            self.drop("does not speak QMP")
        return True

    def _late(self, reply: bytes) -> None:
        """The reply to a command that took its time; requests that came meanwhile are next."""
        self.send(reply)
        if self._open and not self._working and len(self._output) <= OUTPUT_PAUSE:
            self._working = True
            self._loop.post(self._work)

    def send(self, message: bytes) -> None:
        self._trace(message)
        self._put(message)

    def _trace(self, message: bytes) -> None:
        if self._open and trace.respond.on:
            trace.respond(self.number, message.decode("ascii").rstrip())

    def _put(self, message: bytes) -> None:
        if not self._open:
            return
        self._output += message
        self._flush()
        if self._open and len(self._output) > OUTPUT_LIMIT:
            self.drop("does not read")

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError as error:
            self.drop(str(error))
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _writable(self) -> None:
        self._flush()
        if self._open and not self._working and len(self._output) <= OUTPUT_PAUSE:
            self._work()

    def drop(self, reason: str) -> None:
        """Close the connection. What the socket's own buffer holds still reaches the client."""
        if not self._open:
            return
        self._open = False
        for what in list(self._streams):
            self.watch(what, None)
        if trace.disconnected.on:
            trace.disconnected(self.number, reason)
        self._server._clients.remove(self)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
