"""A debugger's connection: a stream socket on the machine's loop, with bounded buffers.

Input is read only while the debugger takes its output, and a few packets a turn, so that neither a debugger that
stalls nor one that floods stops the loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Final

from pyvmm.contain import contain
from pyvmm.gdb import events as trace
from pyvmm.gdb.packets import PACKET_SIZE, Message, PacketReader
from pyvmm.gdb.session import Session
from pyvmm.gdb.target import Target
from pyvmm.loop import Loop

CHUNK: Final = 16 << 10
"""Bytes read in one turn of the loop."""

PACKETS_PER_TURN: Final = 16
"""Most packets handled in one turn. One takes up to a millisecond (some registers, 8 KiB of memory)."""

OUTPUT_PAUSE: Final = 2 * PACKET_SIZE
"""Bytes of output waiting for the debugger from which on its input is not handled."""


class Connection:
    """Serves one debugger at `connection`, until it leaves or `close`. `closed()` is called then."""

    def __init__(self, loop: Loop, connection: socket.socket, target: Target, closed: Callable[[], None]) -> None:
        self._loop = loop
        self._socket = connection
        self._closed = closed
        self._reader = PacketReader()
        self._messages: Iterator[Message] | None = None  # of the last chunk, as far as they are not handled
        self._output = bytearray()
        self._open = True
        self._posted = False
        self._reading = False
        self._finishing = False
        self._session = Session(target, self._send, self._finish)
        connection.setblocking(False)

    def start(self) -> None:
        """Stop the machine, and serve the debugger from now on."""
        if trace.connected.on:
            trace.connected()
        self._session.begin()
        self._listen(True)

    def close(self, reason: str = "closed") -> None:
        """Disconnect. Harmless twice."""
        if not self._open:
            return
        self._open = False
        self._listen(False)
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if trace.disconnected.on:
            trace.disconnected(reason)
        self._session.disconnected()
        self._closed()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(str(error))
            return
        if not data:
            self.close("hung up")
            return
        self._messages = self._reader.feed(data)
        self._work()

    def _work(self) -> None:
        """Handle some messages; leave the rest to a later turn, once the debugger has taken its output."""
        self._posted = False
        for _ in range(PACKETS_PER_TURN):
            if not self._open or self._finishing or self._messages is None:
                return
            if len(self._output) > OUTPUT_PAUSE:
                break
            message = next(self._messages, None)
            if message is None:
                self._messages = None
                self._listen(True)
                return
            try:
                self._session.handle(message)
            except Exception as error:  # a bug of ours: the machine goes on without the debugger
                contain("gdb", error)
                self._finish("internal error")
        if self._open and not self._finishing:
            self._listen(False)
            if len(self._output) <= OUTPUT_PAUSE:
                self._post()

    def _listen(self, on: bool) -> None:
        if on and not self._reading:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        elif self._reading and not on:
            self._loop.remove_reader(self._socket.fileno())
        self._reading = on

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._loop.post(self._work)

    def _send(self, data: bytes) -> None:
        if self._open:
            self._output += data
            self._flush()

    def _finish(self, reason: str) -> None:
        """Close once the output is sent; at once if the debugger does not take it."""
        self._finishing = True
        self._flush()
        self._loop.post(self.close, reason)

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError as error:
            self._output.clear()
            self._finishing = True
            self._loop.post(self.close, str(error))
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _writable(self) -> None:
        self._flush()
        if self._open and self._messages is not None and len(self._output) <= OUTPUT_PAUSE:
            self._post()
