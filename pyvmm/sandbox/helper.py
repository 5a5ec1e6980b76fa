"""Child processes that do for a confined machine what it may not do itself: each makes connections on request.

    machine --- port u32 --> helper
            <-- 1 byte, a descriptor; or 1 byte: refused

A confined process makes no sockets and opens no files. A helper was forked before, and can do one thing only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from struct import pack
from typing import NoReturn

from pyvmm.loop import Loop

CONNECTED, REFUSED = b"\1", b"\0"
CLOSING = 1.0
"""Seconds to wait for a child's end; one that takes longer stays until this process ends."""

Done = Callable[[socket.socket | None], None]


class Helper:
    """The machine's end of a helper; `serve(socket)` runs in the child. Forks: make it before guest memory and
    threads exist.
    """

    def __init__(self, loop: Loop, serve: Callable[[socket.socket], NoReturn]) -> None:
        self._loop = loop
        self._asked: deque[Done] = deque()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if self._child == 0:
            serve(theirs)
        theirs.close()
        self._socket.setblocking(False)
        loop.add_reader(self._socket.fileno(), self._answered)

    def dial(self, port: int, done: Done) -> None:
        """Connect to what the helper has at a port; `done` gets the connection, or None."""
        try:
            self._socket.send(pack("<I", port))
        except OSError:  # its queue is full, or the child was killed
            done(None)
        else:
            self._asked.append(done)

    def _answered(self) -> None:
        try:
            answer, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            answer, descriptors = b"", []
        if not answer:  # the child was killed
            self._loop.remove_reader(self._socket.fileno())
            while self._asked:
                self._asked.popleft()(None)
            return
        done = self._asked.popleft()
        done(socket.socket(fileno=descriptors[0]) if descriptors else None)

    def close(self) -> None:
        """End the child: at once, or soon if it is busy."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        limit = time.monotonic() + CLOSING
        with contextlib.suppress(ChildProcessError):  # in a fork of the process that made it
            while os.waitpid(self._child, os.WNOHANG) == (0, 0) and time.monotonic() < limit:
                time.sleep(0.001)


def enter_child(machine: socket.socket, descriptor: int | None = None) -> tuple[socket.socket, int]:
    """Leave a helper's process its socket, and one more descriptor; return both. Terminal signals do not reach it."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    kept = machine.detach()
    os.dup2(kept, 0)
    if descriptor is not None:
        os.dup2(descriptor, 1)
    os.closerange(1 if descriptor is None else 2, os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=0), 1
