"""The host's side of a machine's Hyper-V sockets: connects programs at Unix sockets to ports of the guest.

    host connects     a program connects to PATH and sends `CONNECT <port>\\n`; answer `OK <host port>\\n`, or the end
    guest connects    to port P of the host: `programs(P)`, by default none; the machine's own services come first

Source: Firecracker docs/vsock.md, for the convention; Cloud Hypervisor and OpenVMM have the same.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.devices.hvsock.protocol import PORT_MAX
from pyvmm.devices.hvsock.socket_end import SocketEnd
from pyvmm.devices.hvsock.sockets import Sockets
from pyvmm.loop import Loop

if TYPE_CHECKING:
    from pyvmm.devices.hvsock.connection import HostEnd
    from pyvmm.vmbus.bus import Vmbus

LINE_LIMIT = 64
"""Bytes of a CONNECT line, its end included."""

LINE_SECONDS = 5.0
"""Seconds for a program to send its CONNECT line."""

GREETINGS_LIMIT = 32
"""Limit of programs that have not sent their line yet."""

_CONNECT = re.compile(rb"CONNECT[ \t]+([0-9]{1,10})[ \t]*\r?\n", re.IGNORECASE)

Programs = Callable[[int, Callable[[socket.socket | None], None]], None]
"""programs(port, done): connects to the program at a host's port; calls `done` once, with None if there is none."""


def _no_programs(port: int, done: Callable[[socket.socket | None], None]) -> None:
    done(None)


class Vsock:
    """Programs of the host and their connections to the guest. All methods belong to the loop's thread.

    `programs` connects to the host's programs. `services` are the machine's own, by port.
    """

    def __init__(self, bus: Vmbus, loop: Loop) -> None:
        self.programs: Programs = _no_programs
        self.services: dict[int, Programs] = {}
        self._loop = loop
        self._sockets = Sockets(bus, self._dial)
        self._greetings: set[_Greeting] = set()

    def _dial(self, port: int, done: Callable[[HostEnd | None], None]) -> None:
        def dialled(connection: socket.socket | None) -> None:
            done(None if connection is None else SocketEnd(self._loop, connection))

        self.services.get(port, self.programs)(port, dialled)

    def accept(self, connection: socket.socket, path: Path) -> None:
        """Serve a program that has connected to PATH."""
        if len(self._greetings) >= GREETINGS_LIMIT:
            connection.close()
        else:
            self._greetings.add(_Greeting(self, self._loop, connection))

    def greeted(self, greeting: _Greeting, port: int | None) -> None:
        """Connect a program that has sent its line; None: it sent another line, or none."""
        self._greetings.discard(greeting)
        if port is None:
            greeting.connection.close()
            return

        def attach(host_port: int) -> HostEnd:
            end = SocketEnd(self._loop, greeting.connection)
            end.write(b"OK %d\n" % host_port)
            return end

        self._sockets.connect(port, attach, lambda reason: greeting.connection.close())

    def connect(self, port: int, attach: Callable[[], socket.socket | None], failed: Callable[[str], None]) -> None:
        """Connect to a port of the guest. `attach` returns the host's program when the guest has accepted, None if it
        is gone; else `failed(reason)` is called.
        """

        def end(host_port: int) -> HostEnd | None:
            connection = attach()
            return None if connection is None else SocketEnd(self._loop, connection)

        self._sockets.connect(port, end, failed)

    def close(self) -> None:
        """Close what programs have connected to PATH without a line."""
        for each in list(self._greetings):
            each.give_up()


class _Greeting:
    """A program that has connected, until it has sent its line. Reads nothing past the line's end: data may
    follow."""

    def __init__(self, vsock: Vsock, loop: Loop, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._vsock = vsock
        self._loop = loop
        self._line = b""
        self._limit = loop.after(LINE_SECONDS, self.give_up)
        loop.add_reader(connection.fileno(), self._readable)

    def give_up(self) -> None:
        """Close the connection."""
        self._end(None)

    def _readable(self) -> None:
        try:
            seen = self.connection.recv(LINE_LIMIT - len(self._line), socket.MSG_PEEK)
            line, newline, _ = seen.partition(b"\n")
            self._line += self.connection.recv(len(line + newline)) if seen else b""
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(None)
            return
        if newline:
            found = _CONNECT.fullmatch(self._line)
            port = int(found[1]) if found else PORT_MAX + 1
            self._end(port if port <= PORT_MAX else None)
        elif not seen or len(self._line) >= LINE_LIMIT:
            self._end(None)

    def _end(self, port: int | None) -> None:
        self._limit.cancel()
        self._loop.remove_reader(self.connection.fileno())
        self._vsock.greeted(self, port)
