"""A debugger's connection: a stream socket on the machine's loop, with bounded buffers.

Input is read only while the debugger takes its output, and a few packets a turn, so that neither a debugger that
stalls nor one that floods stops the loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Final

from pyvmm.bounded_connection import BoundedConnection, Limits
from pyvmm.contain import contain
from pyvmm.gdb import events as trace
from pyvmm.gdb.packets import PACKET_SIZE, Message, PacketReader
from pyvmm.gdb.session import Session
from pyvmm.gdb.target import Target
from pyvmm.loop import Loop

LIMITS: Final = Limits(chunk=16 << 10, steps=16, pause=2 * PACKET_SIZE)
"""A step is one packet: up to a millisecond (some registers, 8 KiB of memory)."""


class Connection:
    """Serves one debugger at `connection`, until it leaves or `close`. `closed()` is called then."""

    def __init__(self, loop: Loop, connection: socket.socket, target: Target, closed: Callable[[], None]) -> None:
        self._closed = closed
        self._reader = PacketReader()
        self._messages: Iterator[Message] = iter(())  # of the last chunk, as far as they are not handled
        self._connection = BoundedConnection(
            loop, connection, LIMITS, feed=self._feed, step=self._step, closed=self._disconnected
        )
        self._session = Session(target, self._connection.send, self._connection.finish)

    def start(self) -> None:
        """Stop the machine, and serve the debugger from now on."""
        if trace.connected.on:
            trace.connected()
        self._session.begin()
        self._connection.start()

    def close(self, reason: str = "closed") -> None:
        """Disconnect. Harmless twice."""
        self._connection.close(reason)

    def _disconnected(self, reason: str) -> None:
        if trace.disconnected.on:
            trace.disconnected(reason)
        self._session.disconnected()
        self._closed()

    def _feed(self, data: bytes) -> None:
        self._messages = self._reader.feed(data)

    def _step(self) -> bool:
        message = next(self._messages, None)
        if message is None:
            return False
        try:
            self._session.handle(message)
        except Exception as error:  # a bug of ours: the machine goes on without the debugger
            contain("gdb", error)
            self._connection.finish("internal error")
        return True
