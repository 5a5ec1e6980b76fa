"""The guest's console as a test sees it: all output so far, and waits for text."""

from __future__ import annotations

import codecs
import re
import threading
import time
from bisect import bisect_right
from collections import deque
from operator import itemgetter
from typing import TYPE_CHECKING

from pyvmm.testbed.waits import GuestEnded, TimedOut

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

TAIL = 2000
"""Characters of the console in the text of an error."""

KEPT = 8 << 20
"""Characters of output kept, of the most recent: a guest may print without end."""

TIMES_KEPT = 2000
"""Pieces of output whose times are kept, of the most recent."""


class Console:
    """Output of the guest's first serial port since the machine's start, and its input."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._new: deque[tuple[float, bytes]] = deque()  # output not decoded yet, and when it came
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._dropped = 0  # characters before `_text`
        self._times: deque[tuple[int, float]] = deque(maxlen=TIMES_KEPT)  # of each piece: its first character, when
        self._lock = threading.Lock()
        self._expected = 0  # characters of `_text` consumed by `expect`

    def received(self, data: bytes) -> None:
        """Append output. Called on vCPU threads too."""
        self._new.append((time.monotonic(), data))
        if len(self._new) > 1000:
            self._decode()

    def _decode(self) -> None:
        with self._lock:
            size, pieces = self._dropped + len(self._text), [self._text]
            for _ in range(len(self._new)):
                moment, data = self._new.popleft()
                self._times.append((size, moment))
                pieces.append(self._decoder.decode(data).replace("\r", ""))
                size += len(pieces[-1])
            self._text = "".join(pieces)
            if len(self._text) > 2 * KEPT:
                dropped = len(self._text) - KEPT
                self._expected = max(0, self._expected - dropped)
                self._dropped += dropped
                self._text = self._text[-KEPT:]

    @property
    def text(self) -> str:
        """The output so far, decoded and without carriage returns; at most the last KEPT characters or twice that."""
        self._decode()
        return self._text

    def tail(self, lines: int, characters: int) -> list[tuple[float, str]]:
        """Return the last lines of the output within so many characters, each with the time.monotonic() of its begin.

        That is 0 where it is not known any more.
        """
        text = self.text.rstrip()[-characters:]
        place = self._dropped + len(self.text.rstrip()) - len(text)
        times = list(self._times)
        found = []
        for line in text.split("\n"):
            number = bisect_right(times, place, key=itemgetter(0))
            found.append((times[number - 1][1] if number else 0.0, line))
            place += len(line) + 1
        return found[-lines:]

    def expect(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Wait for text that matches a regular expression, after that of the previous `expect`; return the match.

        Raises TimedOut or GuestEnded, with the console's tail.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        found: list[re.Match[str]] = []

        def happened() -> bool:
            text = self.text  # first: it moves `_expected` when it drops old output
            match = wanted.search(text, self._expected)
            if match:
                found.append(match)
            return bool(match)

        try:
            self._vm.until(happened, timeout, f"text like {pattern!r} on the console")
        except (TimedOut, GuestEnded) as error:
            if not happened():
                raise type(error)(f"{error}; it ends: {self.text[-TAIL:]!r}") from None
        self._expected = found[-1].end()
        return found[-1]

    def send(self, text: str) -> None:
        """Send input to the guest's console."""
        self._vm.machine.board.serials[0].receive(text.encode())
