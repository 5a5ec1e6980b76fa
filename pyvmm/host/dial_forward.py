"""Connections from the emulated host to programs outside: for a guest that connects to the host over vsock.

The outer side makes connections inside, not the other way round. So it keeps one ready, to the machine's dialler
(`pyvmm.sandbox.dialler`): when that writes a port into it, the outer side connects to PATH_PORT, answers by a byte
and makes the next.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyvmm.host.endpoint import Endpoint
from pyvmm.host.inside import dialler_socket
from pyvmm.host.protocol import Frame, Kind
from pyvmm.sandbox.dialler import connect_to
from pyvmm.sandbox.helper import CONNECTED, REFUSED

LINE_LIMIT = 16


class DialForward:
    """Keeps a connection ready to the dialler of the machine whose programs are at `path`_PORT.

    `connect(descriptor's socket)` makes a stream to it inside; `drop(stream)` ends one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: Path,
        new_stream: Callable[[socket.socket], int],
        replace: Callable[[int, socket.socket], None],
        drop: Callable[[int], None],
    ) -> None:
        self._endpoint = endpoint
        self._path = Path(os.path.abspath(path))
        self._new_stream = new_stream
        self._replace = replace
        self._drop = drop
        self._ours: socket.socket | None = None

    def offer(self) -> None:
        """Make a connection and wait until the dialler uses it."""
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        theirs.setblocking(False)
        stream = self._new_stream(theirs)
        payload = os.fsencode(dialler_socket(self._path))
        self._endpoint.send(Frame(Kind.CONNECT, stream, payload=payload))
        self._endpoint.watch(self._ours.fileno(), partial(self._asked, stream, self._ours))

    def _asked(self, stream: int, ours: socket.socket) -> None:
        try:
            line = ours.recv(LINE_LIMIT)
        except OSError:
            return
        self._endpoint.unwatch(ours.fileno())
        ours.close()
        self._ours = None
        number = line.strip()
        found = connect_to(self._path, int(number)) if number.isdigit() else None
        if line:  # else the machine has closed it, or was not there yet
            self._endpoint.inject(stream, 0, REFUSED if found is None else CONNECTED)
        if found is None:
            self._drop(stream)
        else:
            self._replace(stream, found)
        self.offer()

    def close(self) -> None:
        """Take the connection back."""
        if self._ours is not None:
            self._endpoint.unwatch(self._ours.fileno())
            self._ours.close()
            self._ours = None
