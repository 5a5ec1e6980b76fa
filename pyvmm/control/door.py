"""Where a monitor's clients come in: a Unix socket of the user's own, at a path of the user's choice."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from pyvmm.loop import Loop
from pyvmm.unix_socket import ListeningSocket

QUEUE = 16
"""Clients that may wait to be let in: as many as a server has at once."""


class Door:
    """A socket at `path` that listens until `close`. Clients wait until `open(admit)`: `admit(connection, path)` gets
    who comes.
    """

    def __init__(self, loop: Loop, path: Path) -> None:
        self._loop = loop
        self.path = path
        self._socket = ListeningSocket(path, QUEUE)
        self._open = False

    def open(self, admit: Callable[[socket.socket, Path], None]) -> None:
        """Let clients in."""
        self._admit = admit
        self._open = True
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening and remove the socket. Harmless twice."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._rest()
            return  # else the client gave up before we came to it
        self._admit(connection, self.path)

    def _rest(self) -> None:
        """No descriptor left for a client that waits: look again in a second rather than spin."""
        self._loop.remove_reader(self._socket.fileno())

        def again() -> None:
            if self._open:
                self._loop.add_reader(self._socket.fileno(), self._accept)

        self._loop.after(1.0, again)
