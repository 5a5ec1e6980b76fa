"""The inner pytest as the outer one sees it: a child process, JSON lines to and from it.

    to it, on stdin:        a Job; then {"run": NODEID, "next": ..., "keep": ...} for each test; its end ends it
    from it, on stdout:     {"kind": "ready"}, {"kind": "beat"} now and then; {"kind": "gone"}: a kept guest has ended
                            for a test: {"kind": "report"}, "warning" and "kept" ("exit" for pytest.exit), and last
                            {"kind": "finished"}, or "died" where its process ended without a report
    from it, on stderr:     what tests write with -s, and errors of the inner pytest: kept for the report of its end

In the emulated host the pipes are those of `python -m pyvmm.host exec`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.process import kill_with_parent

if TYPE_CHECKING:
    from pyvmm.testbed.plugin.keep import Offer

INNER = "pyvmm.testbed.plugin.inner"
START_LIMIT = 240.0
"""Seconds to the first word of the inner pytest: the host's kernel made, booted, pytest imported, tests collected."""
BEAT = 2.0
SILENCE_LIMIT = 45.0
"""Seconds without a beat, which comes every BEAT: the emulated host stands still."""
LOG_HEAD, LOG_TAIL = 25, 25  # lines
_POLL = 0.5
_END_LIMIT = 10.0


@dataclass(slots=True)
class Job:
    """What the inner pytest needs to collect the same tests."""

    arguments: list[str]
    """The outer pytest's own."""
    folder: str
    files: list[str]
    nodeids: list[str]
    path: list[str] = field(default_factory=list)
    """sys.path of the outer pytest."""
    worker: str = ""
    """pytest-xdist's name for the outer pytest, empty if it is no worker."""
    basetemp: str | None = None

    def line(self) -> bytes:
        """Return it as a line of JSON."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


class Died(Exception):
    """The inner pytest is gone; the text says how, with the end of its output."""


class Stalled(Died):
    """The emulated host stands still, which QEMU's TCG does now and then with nested guests. No test's fault."""


class InnerProcess:
    """A running inner pytest."""

    def __init__(
        self,
        job: Job,
        launcher: Sequence[str] = (),
        *,
        show: bool = False,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start it by `launcher` and its own command. With `show` its stderr is this process's, else it is kept."""
        self.folder = Path(tempfile.mkdtemp(prefix="pyvmm-pytest-"))
        self._log = self.folder / "log"
        self._progress = progress
        self._told = 0
        self._partial = b""
        self._lines: deque[bytes] = deque()
        self._ready = False
        self._dead: Died | None = None
        environment = dict(os.environ)
        if launcher:
            # pytest captures output in a file that is open and unlinked: over 9p such a file cannot be truncated.
            environment["TMPDIR"] = "/dev/shm"
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling takes seconds there, each time
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*launcher, sys.executable, "-m", INNER],
                cwd=job.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if show else log,
                preexec_fn=kill_with_parent(signal.SIGTERM),
                start_new_session=True,  # Ctrl-C is the outer pytest's; it ends this one by `close`
            )
        self._send(job.line())

    def wait_ready(self) -> None:
        """Wait until it has collected. Raises Died."""
        for message in self._messages(time.monotonic() + START_LIMIT, f"not ready within {START_LIMIT:.0f} s"):
            if message["kind"] == "ready":
                self._ready = True
                return

    def run(self, nodeid: str, seconds: float, keep: Offer | None = None) -> Iterator[dict[str, Any]]:
        """Run one test; yield its messages as they come. `seconds` is its last limit: its own says more.

        `keep`: what its guest is kept by if the test fails. Raises Died.
        """
        self.ask(nodeid, keep=keep)
        return self.answers(seconds)

    def ask(self, nodeid: str, *, following: str | None = None, keep: Offer | None = None) -> None:
        """Ask for a test, which runs after those that were asked for before. `following` comes next, and may share
        fixtures with it if it needs no guest of ours.
        """
        self._send(json.dumps({"run": nodeid, "next": following, "keep": keep}).encode() + b"\n")

    def answers(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the messages of the first test whose end was not told yet, as they come. Raises Died."""
        for message in self._messages(time.monotonic() + seconds, f"no end of the test within {seconds:.0f} s"):
            if message["kind"] == "beat":
                continue
            yield message
            if message["kind"] in ("finished", "died"):
                return

    def log_size(self) -> int:
        """Return how much has been written to the log."""
        return self._log.stat().st_size

    def log_part(self, start: int) -> str:
        """Return what the log has after its first `start` bytes, if long the first and last lines of that."""
        lines = self._log.read_bytes()[start:].decode(errors="replace").splitlines()
        if len(lines) > LOG_HEAD + LOG_TAIL:
            lines[LOG_HEAD:-LOG_TAIL] = [f"... {len(lines) - LOG_HEAD - LOG_TAIL} lines ..."]
        return "\n".join(lines)

    def wait(self) -> Iterator[dict[str, Any]]:
        """Yield what comes while no test runs, without end. Raises Died."""
        return self._messages(math.inf, "")

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading reports it
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _messages(self, limit: float, late: str) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        heard = time.monotonic()
        while self._dead is None:
            while self._lines:
                yield json.loads(self._lines.popleft())
            if not self._ready:
                self._pass_on()
            if select.select([descriptor], [], [], _POLL)[0]:
                heard = time.monotonic()
                data = os.read(descriptor, 1 << 16)
                if not data:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(_END_LIMIT)
                    self._die(f"the inner pytest ended with status {self._process.poll()}")
                *lines, self._partial = (self._partial + data).split(b"\n")
                self._lines += lines
            elif self._ready and time.monotonic() > heard + SILENCE_LIMIT:
                self._die(f"the emulated host has stood still for {SILENCE_LIMIT:.0f} s", Stalled)
            if time.monotonic() > limit:
                self._die(late)
        raise self._dead

    def _pass_on(self) -> None:
        """Pass on what starting the emulated host says."""
        text = self._log.read_bytes()[self._told :]
        whole = text[: text.rfind(b"\n") + 1]
        self._told += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self._progress(line)

    def _die(self, why: str, kind: type[Died] = Died) -> None:
        self._stop()
        text = self.log_part(0)
        self._dead = kind(f"{why}\nits output ends:\n{text}" if text else why)

    def _stop(self) -> None:
        """End it: by the end of its input, then by signals to its process group."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        for number, seconds in ((None, 5.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            if self._process.poll() is not None:
                break
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def close(self) -> None:
        """End it, if it still runs, and remove its files."""
        self._stop()
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
