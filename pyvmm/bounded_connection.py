"""A client's stream socket on the loop, whose input and output are bounded: the monitor's clients and the debugger's.

    readable --recv--> feed --step, step ...--> nothing complete left: read on
                             |  Limits.steps or Limits.seconds are used up: the rest in a later turn
                             |  more than Limits.pause of output queued: once the client has read it
                             +  `waiting`: once `proceed` is called

So neither a client that floods nor one that does not read stops the loop, and each costs one chunk of input with what
`feed` keeps of it, and some output. All methods run on the loop's thread.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from pyvmm.loop import Loop


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take."""

    chunk: int  # bytes read in one turn
    steps: int  # most steps at a time; the turn that reads may have two such times
    pause: int  # bytes of queued output from which on no step is made
    seconds: float = inf  # such a time ends after the step that exceeds them
    output: float = inf  # bytes of queued output beyond which the client is disconnected


class BoundedConnection:
    """Serves one client at `connection`.

    `feed(data)` takes input, `step()` handles one piece of it and returns False if no complete one is left, and
    `closed(reason)` is called once, at the end. `waiting()` says that a step will go on later: until `proceed` no
    input is read. `step` and `feed` may call all methods but `start`. `files` is how many descriptors the client may
    have sent that were not taken; more are closed.
    """

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        limits: Limits,
        *,
        feed: Callable[[bytes], object],
        step: Callable[[], bool],
        closed: Callable[[str], None],
        waiting: Callable[[], bool] = lambda: False,
        files: int = 0,
    ) -> None:
        self._loop = loop
        self._socket = connection
        self._limits = limits
        self._feed = feed
        self._step = step
        self._closed = closed
        self._waiting = waiting
        self._output = bytearray()
        self._open = True
        self._finishing = False  # `close` is posted
        self._reading = False
        self._posted = False  # `_work` is
        self._files_limit = files
        self._files: deque[int] = deque()
        connection.setblocking(False)

    def start(self) -> None:
        """Begin to read."""
        self._listen(True)

    @property
    def is_open(self) -> bool:
        """Whether the client is served, and has not been found to be gone."""
        return self._open and not self._finishing

    @property
    def queued(self) -> int:
        """Return the bytes of output that the client has not taken."""
        return len(self._output)

    @property
    def is_ready(self) -> bool:
        """Whether the client takes its output."""
        return self.is_open and len(self._output) <= self._limits.pause

    def send(self, data: bytes) -> None:
        """Queue output. A client with too much of it is disconnected in the loop's next turn."""
        if not self.is_open:
            return
        self._output += data
        self._flush()
        if len(self._output) > self._limits.output:
            self._fail("does not read")

    def take_file(self) -> int | None:
        """Return the oldest descriptor that the client has sent (SCM_RIGHTS); the caller closes it."""
        return self._files.popleft() if self._files else None

    def proceed(self) -> None:
        """Handle the input that came while `waiting()` was true."""
        if self.is_ready:
            self._post()

    def finish(self, reason: str) -> None:
        """Disconnect in the loop's next turn, when the client has been sent what it takes of its output."""
        if self.is_open:
            self._flush()
            self._fail(reason)

    def close(self, reason: str) -> None:
        """Disconnect. What is in the socket's buffer still reaches the client. Harmless twice."""
        if self._open:
            self.release()
            self._socket.close()
            self._closed(reason)

    def release(self) -> socket.socket:
        """Leave the socket, without closing it, to the caller. `closed` is not called."""
        self._open = False
        while self._files:
            os.close(self._files.popleft())
        self._listen(False)
        self._loop.remove_writer(self._socket.fileno())
        return self._socket

    def _readable(self) -> None:
        try:
            data = self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(str(error))
            return
        if not data:
            self.close("hung up")
            return
        self._feed(data)
        self._work()

    def _receive(self) -> bytes:
        if not self._files_limit:
            return self._socket.recv(self._limits.chunk)
        data, files, _, _ = socket.recv_fds(self._socket, self._limits.chunk, self._files_limit)
        for each in files:
            os.set_inheritable(each, False)
            if len(self._files) < self._files_limit:
                self._files.append(each)
            else:
                os.close(each)
        return data

    def _work(self) -> None:
        """Make some steps, and see to it that the rest is made."""
        self._posted = False
        until = time.monotonic() + self._limits.seconds
        for _ in range(self._limits.steps):
            if not self.is_ready:
                break
            if not self._step():
                if self.is_open:
                    self._listen(not self._waiting())
                return
            if time.monotonic() > until:
                break
        if self.is_open:
            self._listen(False)
            if self.is_ready:
                self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._loop.post(self._work)

    def _listen(self, on: bool) -> None:
        if on and not self._reading:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        elif self._reading and not on:
            self._loop.remove_reader(self._socket.fileno())
        self._reading = on

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._socket.send(self._output)
                del self._output[:sent]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError as error:
            self._fail(str(error))
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _writable(self) -> None:
        self._flush()
        if self.is_ready and not self._reading:
            self._post()

    def _fail(self, reason: str) -> None:
        """Disconnect in the next turn: not from within a step, which may use what `closed` ends."""
        self._finishing = True
        self._output.clear()
        self._listen(False)
        self._loop.remove_writer(self._socket.fileno())
        self._loop.post(self.close, reason)
