"""The loop's watchdog: a thread that detects a turn of the loop that does not end, and reports its stack.

    polls, a PERIOD apart:   waiting   turn 7   turn 7   turn 7   turn 7   waiting
                                                             ^ "stalled for"   ^ "continues after"

It counts polls, not seconds: a stopped process or a suspended laptop is no stalled loop.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pyvmm.loop import Loop
from pyvmm.qapi import LoopInfo

PERIOD = 1.0
"""Seconds between two polls."""

STALL_POLLS = 3
"""Consecutive polls in the same turn before a stall is reported. No known turn takes a second."""

FRAMES = 5
"""Most calls shown of the loop's stack, the innermost first."""


def report(text: str) -> None:
    """Write a line to standard error without Python's buffer, whose lock the stalled thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"pyvmm: {text}\n".encode())


class Watchdog:
    """Watches `loop` between `start` and `stop`. `report(text)` is called on the watchdog's thread.

    The optional note is a file that says where the loop is stalled, for commands that get no answer; it is empty
    while the loop runs.
    """

    def __init__(self, loop: Loop, report: Callable[[str], None] = report, *, period: float = PERIOD) -> None:
        self._note = -1
        self.stalls = 0
        """Number of stalls."""
        self.last_place = ""
        """Place of the last stall."""
        self._loop = loop
        self._report = report
        self._period = period
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def keep_note(self, path: Path) -> None:
        """Keep the note at `path`. Opened now: a confined process opens no file later. No note if opening fails."""
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._note = os.open(path, flags, 0o600)

    def start(self) -> None:
        """Start watching. Harmless twice."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Stop watching, and close the note. Harmless twice."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(self._period)  # at most that long: it may be writing to a full pipe
        if not self._thread.is_alive() and self._note >= 0:
            os.close(self._note)
            self._note = -1

    def info(self) -> LoopInfo:
        """Return the loop's part of `x-status`. Times in seconds."""
        return {
            "turns": self._loop.turns,
            "longest-turn": round(self._loop.longest_turn, 4),
            "stalls": self.stalls,
            "last-stall": self.last_place,
        }

    def _run(self) -> None:
        seen, polls, since = -1, 0, 0.0
        while not self._ending.wait(self._period):
            began, turn = self._loop.turn_began, self._loop.turns
            if began is not None and turn == seen:
                polls += 1
                if polls == STALL_POLLS:
                    since = began
                    self._on_stall(time.monotonic() - since)
                continue
            if polls >= STALL_POLLS:
                self._on_progress(time.monotonic() - since)
            seen, polls = (turn, 1) if began is not None else (-1, 0)
        self._write_note("")

    def _on_stall(self, seconds: float) -> None:
        self.stalls += 1
        thread = self._loop.thread
        frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
        self.last_place = place(frame)
        self._write_note(self.last_place)
        self._report(
            f"the machine's event loop has been stalled for {seconds:.0f} s, and monitor commands wait; "
            f"it is in {self.last_place}"
        )

    def _on_progress(self, seconds: float) -> None:
        self._write_note("")
        self._report(f"the machine's event loop continues after {seconds:.0f} s")

    def _write_note(self, text: str) -> None:
        if self._note >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._note, 0)
                os.pwrite(self._note, text.encode(errors="replace"), 0)


def place(frame: FrameType | None) -> str:
    """Format a stack in one line, the innermost call first: `discard (memory.py:191) < reset (machine.py:285)`."""
    calls: list[str] = []
    while frame is not None and len(calls) < FRAMES:
        code = frame.f_code
        calls.append(f"{code.co_name} ({os.path.basename(code.co_filename)}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(calls) or "an unknown place"
