"""QMP commands for console output: the last bytes of it, and a subscription to new output. None is QEMU's.

    {"execute": "x-console-subscribe", "arguments": {"since": 4711}}
    {"event": "X_CONSOLE", "data": {"begin": 4711, "end": 4723, "text": "hello world\\n"}, ...}

Only the client that asked gets X_CONSOLE. Bytes are counted from the machine's start.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from functools import partial

from pyvmm.control.errors import ControlError
from pyvmm.control.protocol import encode_event
from pyvmm.control.stream import Ready, Send, Subscriber, Timing
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.qapi import X_CONSOLE, Console, Empty

PERIOD = 0.05
"""Seconds between two polls of a subscribed console."""

Since = Callable[[int], tuple[int, bytes]]


def piece(since: Since, offset: int) -> Console:
    """Return console output from byte `offset` on. An incomplete UTF-8 sequence waits for its rest."""
    begin, data = since(offset)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return {"begin": begin, "end": begin + len(data) - len(decoder.getstate()[0]), "text": text}


class ConsoleStream:
    """Stream of console output to one client. A slow client loses output; `begin` shows the gap."""

    def __init__(self, timing: Timing, ready: Ready, send: Send, *, since: Since, offset: int) -> None:
        self._ready = ready
        self._send = send
        self._since = since
        self._offset = offset
        self._timer = timing.every(PERIOD, self._turn)

    def _turn(self) -> None:
        if self._ready():
            self.finish()

    def finish(self) -> None:
        found = piece(self._since, self._offset)
        if found["text"]:
            self._offset = found["end"]
            self._send(encode_event(X_CONSOLE.name, found, time.time()))

    def close(self) -> None:
        self._timer.cancel()


def _checked(since: int) -> int:
    if since < 0:
        raise ControlError("Parameter 'since' expects a number of bytes")
    return since


@command("x-console-tail", since=Argument(int, optional=True))
def console_tail(machine: MonitoredMachine, since: int = 0) -> Console:
    """Return console output from byte `since` on, as far as it is kept: `begin` is the number of its first byte
    (more than `since` if older output was dropped), `end` the `since` of the next call.
    """
    return piece(machine.console_since, _checked(since))


@command("x-console-subscribe", of_client=True, since=Argument(int, optional=True))
def console_subscribe(machine: MonitoredMachine, client: Subscriber | None, since: int = 0) -> Empty:
    """Stream console output to this client, from byte `since` on, until the machine ends."""
    if client is None:
        raise ControlError("console output needs a QMP connection to be sent over")
    client.set_stream("console", partial(ConsoleStream, since=machine.console_since, offset=_checked(since)))
    return {}


@command("x-console-unsubscribe", of_client=True)
def console_unsubscribe(machine: MonitoredMachine, client: Subscriber | None) -> Empty:
    """Stop the stream of console output; some may still be in flight."""
    if client is not None:
        client.set_stream("console", None)
    return {}
