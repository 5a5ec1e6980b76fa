"""Watches one machine from a thread of its own, so that one that does not answer does not delay the screen."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm.analysis.read import from_object
from pyvmm.cli.target import connect
from pyvmm.cli.top.samples import Sample, sample
from pyvmm.client.qmp import Client, Disconnected, Refused, Starting, TimedOut
from pyvmm.client.registry import Entry, is_starting
from pyvmm.errors import PyvmmError
from pyvmm.guest_text import clean, clean_all, one_line

TRACED = (
    "vmbus*,!vmbus_signal_event,!vmbus_channel_notify_guest,!vmbus.channel_signalled,!vmbus.packet_*,hv_balloon_*,balloon.*,"
    "ic.*,machine.*,!machine.vcpu_exit,!machine.memory,agent.*"
)
"""Trace events shown: what was said, not every signal."""

ANSWER_TIMEOUT = 5.0
"""Seconds without an answer until a machine counts as not answering."""

LINES = 200
"""Trace lines kept."""

STARTING, SILENT = "starting", "not answering"
"""Errors that the machine's next answer ends."""

ENDS = {
    "guest-shutdown": "powered off",
    "guest-reset": "ended by reset",
    "guest-panic": "panicked",
    "host-qmp-quit": "ended by quit",
    "host-signal": "ended by signal",
    "host-error": "host error",
}
"""QEMU's ShutdownCause in words for people."""


class Watcher:
    """Asks `entry` every `period` seconds. `sample` and `lines` are what it said last; `error` why it does not.

    Once the machine has ended, `ended` is when (time.monotonic()), `error` says how, `last_words` what a panic left.
    """

    def __init__(self, entry: Entry, period: float) -> None:
        self.entry = entry
        self.sample: Sample | None = None
        self.lines: deque[tuple[float, str]] = deque(maxlen=LINES)  # seconds of the machine's clock, text
        self.error = ""
        self.ended: float | None = None
        self.last_words = ""
        self._how = "ended"
        self._period = period
        self._wishes: deque[Callable[[Client], Any]] = deque()
        self._before: tuple[float, dict[str, Any]] | None = None
        self._words: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {entry.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop asking, soon."""
        self._stop.set()

    def resize(self, size: int) -> None:
        """Ask for a balloon target, soon."""
        self._wishes.append(lambda client: client.execute("balloon", {"value": size}))

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.sample is None and is_starting(self.entry, silent=True):
                self.error = STARTING  # as long as nothing is heard of it; an emulated host's socket is there early
            try:
                with connect(self.entry, ANSWER_TIMEOUT, start_timeout=0) as client:
                    self._talk(client)
            except Starting:
                self.error = STARTING
                self._stop.wait(self._period)
            except Disconnected:
                if self.sample is not None:
                    self.error, self.ended = self._how, time.monotonic()
                    return
                self.error = SILENT
                self._stop.wait(self._period)
            except TimedOut:
                self.error = SILENT  # its host is busy
            except PyvmmError as error:
                self.error = one_line(str(error))
                return

    def _talk(self, client: Client) -> None:
        try:
            self._subscribe(client)
            while not self._stop.is_set():
                self.turn(client)
        except Disconnected:
            while client.events:  # what came before the end, and how that was
                self._take(*client.events.popleft())
            raise

    def _subscribe(self, client: Client) -> None:
        try:
            self._words = client.execute("x-trace-subscribe", {"pattern": TRACED})["events"]
        except Refused:
            pass  # an older machine: no trace lines

    def turn(self, client: Client) -> None:
        """Take a sample, then listen for a period."""
        now = clean_all(client.execute("x-status"))
        clock = time.monotonic()
        if self._before is None:
            self.sample = sample(now, None, 0.0)
        else:
            self.sample = sample(now, self._before[1], clock - self._before[0])
        self._before = clock, now
        if self.error in (STARTING, SILENT):
            self.error = ""
        deadline = clock + self._period
        while not self._stop.is_set():
            while self._wishes:
                self._wish(client, self._wishes.popleft())
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                self._take(*client.wait_event({"X_TRACE", "SHUTDOWN", "GUEST_PANICKED"}, min(left, 0.1)))
            except TimedOut:
                continue

    def _take(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "X_TRACE":
                for entry in filter(None, map(from_object, data["events"])):
                    message = entry.message(self._words.get(entry.name))
                    self.lines.append((entry.time, one_line(f"{entry.name} {message}".rstrip())))
            case "GUEST_PANICKED":
                self.last_words = clean(str(data.get("x-text", "")))
            case "SHUTDOWN":
                self._how = ENDS.get(str(data.get("reason")), "ended")

    def _wish(self, client: Client, wish: Callable[[Client], Any]) -> None:
        try:
            wish(client)
            self.error = ""
        except Refused as error:
            self.error = one_line(str(error))
