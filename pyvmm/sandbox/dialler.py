"""The dialler: a helper that connects to the programs at PATH_PORT for a confined machine, and to nothing else.

In an emulated host the programs are outside. There the outer side keeps a connection to the dialler ready; the
dialler writes a port into it, the outer side connects to PATH_PORT and answers with a byte
(`pyvmm.host.dial_forward`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path
from struct import unpack
from typing import NoReturn

from pyvmm.loop import Loop
from pyvmm.sandbox.helper import CONNECTED, REFUSED, Helper, enter_child
from pyvmm.unix_socket import PATH_LIMIT, ListeningSocket

OUTER_SECONDS = 5.0
"""Seconds for the outer side to answer."""
IDLE_SECONDS = 1.0
"""Seconds to wait for a connection of the outer side, which makes a new one after each use."""


def connect_to(path: Path, port: int) -> socket.socket | None:
    """Connect to the program at PATH_PORT; None if none listens, or its queue is full."""
    name = f"{path}_{port}"
    if len(os.fsencode(name)) > PATH_LIMIT:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(name)
    except OSError:
        connection.close()
        return None
    return connection


class Dialler(Helper):
    """The machine's end of the dialler. `outer`: the path at which the outer side of an emulated host connects."""

    def __init__(self, path: Path, loop: Loop, *, outer: Path | None = None) -> None:
        listener = None if outer is None else ListeningSocket(outer, 16)
        super().__init__(loop, lambda machine: _serve(machine, path, listener))
        if listener is not None:
            listener.socket.close()
        self._outer = outer

    def close(self) -> None:
        super().close()
        if self._outer is not None:
            with contextlib.suppress(OSError):
                self._outer.unlink()


def _serve(machine: socket.socket, path: Path, listener: ListeningSocket | None) -> NoReturn:
    """The child: serve until the machine's end is closed."""
    try:
        own, kept = enter_child(machine, None if listener is None else listener.fileno())
        outer = None if listener is None else _Outer(socket.socket(fileno=kept))
        while request := own.recv(4):
            (port,) = unpack("<I", request)
            found = (outer.connect(port) if outer is not None else None) or connect_to(path, port)
            if found is None:
                own.send(REFUSED)
            else:
                socket.send_fds(own, [CONNECTED], [found.fileno()])
                found.close()
    finally:
        os._exit(0)


class _Outer:
    """Connections that the outer side of an emulated host has made for later."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        listener.setblocking(False)

    def connect(self, port: int) -> socket.socket | None:
        """Let the outer side connect to the program at a port."""
        while select.select([self._listener], [], [], IDLE_SECONDS)[0]:
            connection, _ = self._listener.accept()
            connection.settimeout(OUTER_SECONDS)
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % port)
                answer = connection.recv(1)
                if answer == CONNECTED:
                    return connection
                if answer:
                    connection.close()
                    return None
            connection.close()  # one of a client that is gone: the next
        return None
