"""Listening TCP sockets for a debugger, where a Unix socket will not do; and how a user writes either.

    127.0.0.1:1234, localhost:1234, [::1]:1234, :1234 (this computer only)        TCP
    ./gdb.sock, /run/user/1000/gdb.sock                                          a Unix socket: it has a slash

Anyone who reaches a debugger's port has the guest's memory in hand, every user of this computer for 127.0.0.1; a Unix
socket is this user's alone.
"""

from __future__ import annotations

import socket
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.unix_socket import ListeningSocket

HERE = "127.0.0.1"


def parse_place(text: str) -> Path | tuple[str, int]:
    """Return the path, or host and port, that the user wrote. Raises ConfigError."""
    if "/" in text:
        return Path(text)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{text[:60]!r} is neither HOST:PORT nor a path with a slash, as in :1234 or ./gdb.sock")
    return host.removeprefix("[").removesuffix("]") or HERE, int(port)


class TcpListener:
    """A TCP socket that listens at `place`, until `close`. Raises ConfigError, in one line, if it cannot."""

    def __init__(self, place: tuple[str, int], backlog: int) -> None:
        host, port = place
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise ConfigError(f"{host}:{port}: {error.strerror or error}") from error
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            self.socket.bind(address)
            self.socket.listen(backlog)
            self.socket.setblocking(False)
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"{host}:{port}: {error.strerror or error}; choose another") from error

    def fileno(self) -> int:
        """Return the descriptor, for poll and epoll."""
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening. Harmless twice."""
        self.socket.close()


def listen(place: Path | tuple[str, int], backlog: int) -> ListeningSocket | TcpListener:
    """Listen at a place that `parse_place` returned. Raises ConfigError."""
    return ListeningSocket(place, backlog) if isinstance(place, Path) else TcpListener(place, backlog)
