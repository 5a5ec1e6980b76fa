"""A clock that moves only when told, and an event loop on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm.loop import Timers


class FakeLoop(Timers):
    """pyvmm.loop.Loop without file descriptors: `post` queues, `run` does what is queued, `advance` moves the clock.

    `posted_limit` bounds how many callbacks one `run` may do, so that a test of an endless loop ends.
    """

    def __init__(self, *, posted_limit: int = 100_000) -> None:
        self.now = 1000.0
        super().__init__(lambda: self.now)
        self._posted: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._posted_limit = posted_limit

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        self._posted.append((callback, args))

    def step(self) -> bool:
        """Do one posted callback. False: there was none."""
        if not self._posted:
            return False
        callback, args = self._posted.popleft()
        callback(*args)
        return True

    def run(self) -> None:
        """Do all that is posted, and what that posts."""
        for _ in range(self._posted_limit):
            if not self.step():
                return
        raise AssertionError(f"the loop is not idle after {self._posted_limit} callbacks")

    def advance(self, seconds: float) -> None:
        """Move the clock, calling each timer at its own time."""
        end = self.now + seconds
        self.run()
        while (due := self.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.run_due()
            self.run()
        self.now = end
