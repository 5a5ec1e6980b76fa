"""Listening TCP sockets for a debugger, where a Unix socket will not do.

Anyone who reaches a debugger's port has the guest in hand, for 127.0.0.1 every user of this computer; a Unix socket
is this user's alone.
"""

from __future__ import annotations

import socket

from pyvmm.errors import ConfigError
from pyvmm.gdb_place import show_place


class TcpListener:
    """A TCP socket that listens at `place`, until `close`. Raises ConfigError, in one line, if it cannot."""

    def __init__(self, place: tuple[str, int], backlog: int) -> None:
        host, port = place
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise ConfigError(f"{show_place(place)}: {error.strerror or error}") from error
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            self.socket.bind(address)
            self.socket.listen(backlog)
            self.socket.setblocking(False)
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"{show_place(place)}: {error.strerror or error}; choose another") from error

    def fileno(self) -> int:
        """Return the descriptor, for poll and epoll."""
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening. Harmless twice."""
        self.socket.close()
