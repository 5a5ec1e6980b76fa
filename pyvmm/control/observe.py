"""QMP commands that stream a machine's trace events to clients. None is QEMU's.

    {"execute": "x-trace-subscribe", "arguments": {"pattern": "vmbus_*,hv_balloon_*"}}
    {"event": "X_TRACE", "data": {"events": [{"time": ..., "event": "vmbus_post_msg", ...}, ...], "dropped": 0}, ...}

Only the client that asked gets X_TRACE, in batches, at most BATCH events every PERIOD. The guest never waits for it:
a vCPU thread appends to a queue; events that find it full are dropped, and the next batch carries their number.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial

from pyvmm import trace
from pyvmm.control.errors import ControlError
from pyvmm.control.stream import Ready, Send, Subscriber, Timing
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.qapi import X_TRACE, Empty, TraceEventInfo, TraceSubscription
from pyvmm.trace import Record
from pyvmm.trace.formats import JsonEncoder, encode_in_turns

PERIOD = 0.025
"""Seconds between two batches: seems immediate to a person."""

BATCH = 300
"""Most events in a batch: 12,000 a second, at half a millisecond of the loop for each batch."""

QUEUE_LIMIT = 12_000
"""Most events queued for a client: one second's worth."""

WATCHED = "*,!machine.vcpu_exit,!machine.memory,!serial.irq,!control.*,!monitor_*,!handle_qmp_command"
"""Default pattern: without the most frequent events, and without events about monitor clients like this one."""

PATTERN_LIMIT = 1000
"""Longest pattern in characters. Each word of it is matched once against every declared event."""


class TraceStream:
    """Stream of trace events to one client. The sink is called from any thread, all else from the loop."""

    def __init__(self, timing: Timing, ready: Ready, send: Send, *, pattern: str) -> None:
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
        if (self._queue or self._dropped) and self._ready():
            self._send_batch()

    def finish(self) -> None:
        for _ in range(QUEUE_LIMIT // BATCH + 1):  # other threads may still be adding
            if self._queue or self._dropped:
                self._send_batch()

    def _send_batch(self) -> None:
        queue = self._queue
        records = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        objects = encode_in_turns(records, self._encoder.object)
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        microseconds = int(time.time() * 1_000_000)
        self._send(
            b'{"event": "%b", "data": {"dropped": %d, "events": [%b]}, '
            b'"timestamp": {"seconds": %d, "microseconds": %d}}\r\n'
            % (
                X_TRACE.name.encode(),
                dropped,
                ", ".join(objects).encode("ascii", "backslashreplace"),
                microseconds // 1_000_000,
                microseconds % 1_000_000,
            )
        )

    def close(self) -> None:
        """Unsubscribe, and drop the queued events."""
        self._timer.cancel()
        trace.unsubscribe(self)
        self._queue.clear()


@command("x-trace-subscribe", of_client=True, pattern=Argument(str, optional=True))
def trace_subscribe(
    machine: MonitoredMachine, client: Subscriber | None, pattern: str = WATCHED
) -> TraceSubscription:
    """Send this client the events that match `pattern`: shell wildcards with commas, `!` before exclusions.
    Replaces an earlier subscription.

    The reply has each event's name with the template of its message, and the current time of the clock that
    the events' times are from.
    """
    if len(pattern) > PATTERN_LIMIT:
        raise ControlError(f"Parameter 'pattern' expects at most {PATTERN_LIMIT} characters")
    trace.check_pattern(pattern)
    if client is None:
        raise ControlError("trace events need a QMP connection to be sent over")
    client.set_stream("trace", partial(TraceStream, pattern=pattern))
    return {"events": {event.name: event.template for event in trace.matching(pattern)}, "now": time.monotonic()}


@command("x-trace-unsubscribe", of_client=True)
def trace_unsubscribe(machine: MonitoredMachine, client: Subscriber | None) -> Empty:
    """Stop the stream of events; some may still be in flight."""
    if client is not None:
        client.set_stream("trace", None)
    return {}


@command("x-query-trace-events")
def query_trace_events(machine: MonitoredMachine) -> list[TraceEventInfo]:
    """Return every event of this machine: name, fields, whether any sink is subscribed."""
    return [{"name": each.name, "fields": list(each.fields), "on": each.on} for each in trace.events()]
