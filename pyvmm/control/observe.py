"""Commands for those who watch a machine: trace events as they happen, the end of its console. None is QEMU's.

    {"execute": "x-trace-subscribe", "arguments": {"pattern": "vmbus_*,hv_balloon_*"}}
    {"event": "X_TRACE", "data": {"events": [{"time": ..., "event": "vmbus_post_msg", ...}, ...], "dropped": 0}, ...}

Only the client that asked gets X_TRACE, in batches, at most BATCH events every PERIOD. The guest never waits for it:
a vCPU thread appends to a queue, and what finds that full is counted and told in the next batch.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pyvmm import trace
from pyvmm.control.errors import ControlError
from pyvmm.control.table import Argument, Controlled, Reply, command
from pyvmm.trace import Record
from pyvmm.tracing.formats import JsonEncoder

PERIOD = 0.025
"""Seconds between two batches: quick enough for the eye."""

BATCH = 300
"""Events of a batch: 12,000 a second, for half a millisecond of the loop each time."""

QUEUE_LIMIT = 12_000
"""Events that wait for a client: a second's."""

WATCHED = "*,!machine.vcpu_exit,!machine.memory,!serial.irq,!control.*,!monitor_*,!handle_qmp_command"
"""What is sent by default: not what would drown the rest, nor what tells of clients like this one."""

PATTERN_LIMIT = 1000
"""Characters of a subscription. Every word of it is looked at for every event there is, once."""


class Timing(Protocol):
    """The part of the loop that is needed."""

    def every(self, period: float, callback: Callable[[], Any], /) -> Any: ...


class Subscriber(Protocol):
    """The client a command came from."""

    def subscribe(self, pattern: str | None) -> None: ...


class TraceStream:
    """Trace events on their way to one client. A sink, called from any thread; the rest is the loop's.

    `ready()` says whether the client has read enough to be sent more, `send(message)` sends.
    """

    def __init__(
        self,
        timing: Timing,
        pattern: str,
        ready: Callable[[], bool],
        send: Callable[[bytes], None],
    ) -> None:
        self._ready = ready
        self._send = send
        self._queue: deque[Record] = deque()
        self._dropped = 0
        self._lock = threading.Lock()  # for `_dropped`
        self._encoder = JsonEncoder()
        self._timer = timing.every(PERIOD, self._turn)
        trace.subscribe(pattern, self)

    def __call__(self, record: Record) -> None:
        if len(self._queue) < QUEUE_LIMIT:
            self._queue.append(record)
        else:
            with self._lock:
                self._dropped += 1

    def _turn(self) -> None:
        if (not self._queue and not self._dropped) or not self._ready():
            return
        queue, encode = self._queue, self._encoder.object
        records = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        microseconds = int(time.time() * 1_000_000)
        self._send(
            b'{"event": "X_TRACE", "data": {"dropped": %d, "events": [%b]}, '
            b'"timestamp": {"seconds": %d, "microseconds": %d}}\r\n'
            % (
                dropped,
                ", ".join([encode(record) for record in records]).encode("ascii", "backslashreplace"),
                microseconds // 1_000_000,
                microseconds % 1_000_000,
            )
        )

    def close(self) -> None:
        """Forget what waits, and listen no more."""
        self._timer.cancel()
        trace.unsubscribe(self)
        self._queue.clear()


@command("x-trace-subscribe", of_client=True, pattern=Argument(str, optional=True))
def trace_subscribe(machine: Controlled, client: Subscriber | None, pattern: str = WATCHED) -> Reply:
    """Send this client the events that match: shell wildcards with commas, `!` before what to leave out. Replaces an
    earlier subscription.

    The reply has each event's name with the template of its message, and the machine's clock now, which the events'
    times are of.
    """
    if len(pattern) > PATTERN_LIMIT:
        raise ControlError(f"Parameter 'pattern' expects at most {PATTERN_LIMIT} characters")
    trace.check_pattern(pattern)
    if client is None:
        raise ControlError("trace events need a QMP connection to be sent over")
    client.subscribe(pattern)
    return {"events": {event.name: event.template for event in trace.matching(pattern)}, "now": time.monotonic()}


@command("x-trace-unsubscribe", of_client=True)
def trace_unsubscribe(machine: Controlled, client: Subscriber | None) -> Reply:
    """No more events; some may still be on their way."""
    if client is not None:
        client.subscribe(None)
    return {}


@command("x-query-trace-events")
def query_trace_events(machine: Controlled) -> Reply:
    """Every event of this machine: name, fields, whether somebody listens."""
    return [{"name": each.name, "fields": list(each.fields), "on": each.on} for each in trace.events()]


@command("x-console-tail", since=Argument(int, optional=True))
def console_tail(machine: Controlled, since: int = 0) -> Reply:
    """What the guest wrote to its console from byte `since` on, as far as it is kept: `begin` is the number of its
    first byte (more than `since` if some was forgotten), `end` the `since` of the next call. A character that is not
    whole yet waits for that.
    """
    if since < 0:
        raise ControlError("Parameter 'since' expects a number of bytes")
    begin, data = machine.console_since(since)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return {"begin": begin, "end": begin + len(data) - len(decoder.getstate()[0]), "text": text}
