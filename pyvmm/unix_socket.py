"""Listening Unix sockets: for this user alone, replacing stale socket files but never sockets in use.

    with ListeningSocket(Path("/run/user/1000/pyvmm/vm.sock")) as door:
        connection, _ = door.socket.accept()

A process that is killed leaves its socket's file behind. A file counts as dead when it is a socket of this user's,
the kernel refuses connections to it, and no process has it bound (one that has may not listen yet). Check, removal
and bind happen under one lock of the user's, so that of two processes that find the same dead socket the second finds
the first one's new socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pyvmm.errors import ConfigError, HostError
from pyvmm.paths import is_own, runtime_folder

PATH_LIMIT = 107
"""Longest path of a Unix socket in bytes, sun_path without its NUL."""


class ListeningSocket:
    """A socket at `path`, mode 0600, until `close`. Raises ConfigError, in one line, if it cannot be bound there."""

    def __init__(self, path: Path, backlog: int) -> None:
        self._file = Path(os.path.abspath(path))  # relative to the current working folder
        if len(os.fsencode(path)) > PATH_LIMIT:
            raise ConfigError(f"socket path {path} is longer than {PATH_LIMIT} bytes: choose a shorter one")
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Before bind, so that the file is never open to others; after it, because bind applies the umask,
            # which may remove the owner's rights.
            os.fchmod(self.socket.fileno(), 0o600)
            with _lock():
                try:
                    self._bind()
                    self._identity = _identity(path)
                    _give_owner_rights(path)
                    self.socket.listen(backlog)
                except FileNotFoundError as error:
                    raise ConfigError(f"socket {path}: the folder {path.parent} does not exist") from error
                except OSError as error:
                    raise ConfigError(f"socket {path}: {error.strerror}") from error
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for poll and epoll."""
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening and remove the file, unless another process has replaced it. Harmless twice."""
        if self.socket.fileno() < 0:
            return
        if self._identity is not None and _identity(self._file) == self._identity:
            with suppress(PermissionError):  # a confined process may not: pyvmm.sandbox.sweeper removes it
                self._file.unlink(missing_ok=True)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bind(self) -> None:
        try:
            self.socket.bind(os.fspath(self.path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(self.path)
            self.socket.bind(os.fspath(self.path))


def is_listening(path: Path) -> bool:
    """Return whether a process accepts connections at the Unix socket `path`."""
    if not os.path.lexists(path):
        return False  # no test socket: a confined process gets none
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


def _remove_dead(path: Path) -> None:
    """Remove the dead socket at `path`. Raises ConfigError if it is anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path} exists and is not a socket: remove it or choose another path")
    if not is_own(found):
        raise ConfigError(f"socket {path} belongs to another user: choose another path")
    try:
        alive = is_listening(path) or _is_bound(path)
    except HostError:  # of another type, for instance: in use
        alive = True
    if alive:
        raise ConfigError(f"socket {path} is in use by another program: choose another path")
    path.unlink(missing_ok=True)


def _is_bound(path: Path) -> bool:
    """Return whether a process has bound a socket to `path`, by the kernel's list of socket names."""
    names = {os.fsencode(name) for name in (path, os.path.abspath(path), os.path.realpath(path))}
    try:
        lines = Path("/proc/net/unix").read_bytes().splitlines()
    except OSError:
        return False
    return any(line.split(None, 7)[7:] == [name] for line in lines for name in names)


@contextmanager
def _lock() -> Iterator[None]:
    """Hold a lock that excludes this user's other processes; freed when the process ends."""
    try:
        descriptor = os.open(runtime_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _give_owner_rights(path: Path) -> None:
    """Set mode 0600 on the socket just bound, but on no file that was put in its place."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISSOCK(found.st_mode) and is_own(found) and stat.S_IMODE(found.st_mode) != 0o600:
            os.chmod(f"/proc/self/fd/{descriptor}", 0o600)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
