"""A listening socket on the loop, of the monitor or for a debugger, at a place of the user's choice."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.gdb_place import Place, show_place
from pyvmm.loop import Loop
from pyvmm.unix_socket import ListeningSocket

if TYPE_CHECKING:
    from pyvmm.tcp_socket import TcpListener

QUEUE = 16
"""Listen backlog: as many clients as a server has at once."""


class Listener:
    """A socket at `place` that listens until `close`. Clients are accepted only after `open(on_accept)`, which calls
    `on_accept(connection, path)` for each; for TCP `path` is but a name.
    """

    def __init__(self, loop: Loop, place: Place) -> None:
        self._loop = loop
        self.path = place if isinstance(place, Path) else Path(show_place(place))
        self._socket = _listen(place)
        self._open = False

    def open(self, on_accept: Callable[[socket.socket, Path], None]) -> None:
        """Start accepting clients."""
        self._on_accept = on_accept
        self._open = True
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening and remove the socket. Harmless twice."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    @property
    def is_file(self) -> bool:
        """Whether `path` is a socket's file, to be removed at the end."""
        return isinstance(self._socket, ListeningSocket)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._pause()
            return  # else the client gave up before we accepted it
        self._on_accept(connection, self.path)

    def _pause(self) -> None:
        """Pause accepting for a second, because no descriptor is left: polling at once would spin."""
        self._loop.remove_reader(self._socket.fileno())

        def again() -> None:
            if self._open:
                self._loop.add_reader(self._socket.fileno(), self._accept)

        self._loop.after(1.0, again)


def _listen(place: Place) -> ListeningSocket | TcpListener:
    if isinstance(place, Path):
        return ListeningSocket(place, QUEUE)
    from pyvmm.tcp_socket import TcpListener

    return TcpListener(place, QUEUE)
