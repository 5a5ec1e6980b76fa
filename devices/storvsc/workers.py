"""Threads that read and write disk images, and hand what they have done back to the loop.

    loop: submit(job) --> queue --> thread: job.run() --> finished --> loop: job.finish(), a slice each turn

A thread never touches the state of a device, a channel or a ring: it gets an image and views of guest memory. There
are THREADS at most, started when there is work for them, i.e. after the process was confined.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import Protocol

from pyvmm.loop import Pending, Poster

THREADS = 8
"""Threads at most, for all disks of a machine. More requests wait in the queue; the guest has a limited number of
requests outstanding."""

FINISHED_PER_TURN = 64
"""Completions handled in one turn of the loop, at some 30 µs each."""


class Job(Protocol):
    """One piece of work: `run` on a thread, then `finish` on the loop."""

    def run(self) -> None:
        """Do the work. Must not raise."""

    def finish(self) -> None:
        """Handle the outcome, on the loop's thread."""


class Budget:
    """An amount that may be used up in each turn of the loop."""

    def __init__(self, loop: Poster, amount: int) -> None:
        self._amount = self._left = amount
        self._renewing = Pending(loop, self._renew)

    def take(self, amount: int) -> bool:
        """Take so much, and return True; or False if it is not left."""
        if amount > self._left:
            return False
        self._left -= amount
        self._renewing.ask()
        return True

    def _renew(self) -> None:
        self._left = self._amount


class Workers:
    """A pool of threads. All methods are called on the loop's thread."""

    def __init__(self, loop: Poster, threads: int = THREADS) -> None:
        self._limit = threads
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._finished: deque[Job] = deque()
        self._handing_back = Pending(loop, self._take_finished)
        self._threads: list[threading.Thread] = []
        self.outstanding = 0
        """Jobs submitted and not finished."""
        self._change = threading.Condition()
        self._done = 0  # jobs that ran; guarded by _change
        self._submitted = 0
        self._awaited = False

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self.outstanding += 1
        self._submitted += 1
        if len(self._threads) < min(self._limit, self.outstanding):
            thread = threading.Thread(target=self._work, name=f"disk{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(job)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.run()
            self._finished.append(job)
            del job  # and with it the views of guest memory
            with self._change:
                self._done += 1
                if self._awaited:
                    self._change.notify_all()
            self._handing_back.ask()

    def _take_finished(self) -> None:
        for _ in range(min(len(self._finished), FINISHED_PER_TURN)):
            job = self._finished.popleft()
            self.outstanding -= 1
            job.finish()
        if self._finished:
            self._handing_back.ask()

    def drain(self, seconds: float | None = None) -> bool:
        """Wait until all jobs so far have run, and finish them. Return False if `seconds` were not enough."""
        with self._change:
            self._awaited = True
            ran = self._change.wait_for(lambda: self._done == self._submitted, seconds)
            self._awaited = False
        while self._finished:
            self._take_finished()
        return ran

    def stop(self, seconds: float | None = None) -> bool:
        """Finish all jobs and end the threads; a later job starts new ones. Return False if `seconds` were not
        enough: then the threads go on.
        """
        if not self.drain(seconds):
            return False
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        return True
