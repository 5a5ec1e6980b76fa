"""Where a monitor's clients come in: a Unix socket of the user's own, at a path of the user's choice."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.loop import Loop

QUEUE = 16
"""Clients that may wait to be let in: as many as a server has at once."""

PATH_LIMIT = 107
"""Bytes in the path of a Unix socket, sun_path without its NUL."""


class Door:
    """A socket at `path` that listens until `close`; `admit(connection, path)` gets who comes."""

    def __init__(self, loop: Loop, path: Path, admit: Callable[[socket.socket, Path], None]) -> None:
        self._loop = loop
        self._path = path
        self._admit = admit
        self._socket = listen(path)
        self._inode = _identity(path)
        self._open = True
        loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if _identity(self._path) == self._inode:
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._rest()
            return  # else the client gave up before we came to it
        self._admit(connection, self._path)

    def _rest(self) -> None:
        """No descriptor left for a client that waits: look again in a second rather than spin."""
        self._loop.remove_reader(self._socket.fileno())

        def again() -> None:
            if self._open:
                self._loop.add_reader(self._socket.fileno(), self._accept)

        self._loop.after(1.0, again)


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at `path` that only this user can connect to; a dead one in its place is replaced."""
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise ConfigError(f"socket path {path} is longer than {PATH_LIMIT} bytes: choose a shorter one")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(made.fileno(), 0o600)  # before bind: the file is never open to others
        _explain(path, lambda: _bind(made, path))
        made.listen(QUEUE)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _bind(made: socket.socket, path: Path) -> None:
    try:
        made.bind(os.fspath(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_stale(path)
        made.bind(os.fspath(path))


def _explain(path: Path, action: Callable[[], None]) -> None:
    try:
        action()
    except FileNotFoundError as error:
        raise ConfigError(f"socket {path}: the folder {path.parent} does not exist") from error
    except OSError as error:
        raise ConfigError(f"socket {path}: {error.strerror}") from error


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} exists and is not a socket: remove it or choose another path")
    except FileNotFoundError:
        return
    if is_listening(path):
        raise ConfigError(f"socket {path} is in use by another program: choose another path")
    path.unlink(missing_ok=True)


def is_listening(path: Path) -> bool:
    """Whether a process accepts connections at the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full: it listens, if slowly
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise HostError(f"socket {path}: {error.strerror}") from error
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
