"""The processes that guests and tests run in, forked from the inner pytest.

    inner pytest --fork--> template, one for a configuration --fork--> a test's process
                           (or plain process: it runs the tests itself)
         |  {"run": NODEID} ------> |                                       |
         |  <---------------------------------------- report lines ------- |  ends
         |  <-- "finished"/"died" -|  <--------------- its status ---------|

Only one of template and test's process writes at a time. Each dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, BinaryIO, NoReturn

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.process import kill_with_parent
from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.configuration import Configuration
from pyvmm.testbed.plugin.cover import TemplateCoverage, wanted
from pyvmm.testbed.plugin.keep import Offer, serve
from pyvmm.testbed.plugin.own_frames import leave_out
from pyvmm.testbed.plugin.sections import add_sections, boot_failure
from pyvmm.testbed.plugin.sender import Sender
from pyvmm.testbed.plugin.session_fixtures import forget_finalizers
from pyvmm.testbed.plugin.source_files import name_source_files
from pyvmm.testbed.plugin.time_limit import TimeLimit, wait_for_end
from pyvmm.testbed.template import Child, Template
from pyvmm.testbed.vm import VM
from pyvmm.trace import event

begun = event("testbed.test_begun", "{name}")


class Runner:
    """Runs tests of a session in forked processes, and sends their reports up."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.config = session.config
        self.tests = {item.nodeid: item for item in session.items}

    def run(self, item: pytest.Item, guest: VM, send: Callable[..., None], limit: TimeLimit) -> bool:
        """Run a test with its guest in this process. Return whether it failed."""
        forget_finalizers(self.session)
        self.config.stash[hooks.GUEST] = guest
        sender = _GuestSender(self.config, guest, send, limit)
        begun(item.name)
        sender.run(item, None)
        return sender.failed


class _GuestSender(Sender):
    """A failed test's report has sections about the guest."""

    def __init__(self, config: pytest.Config, guest: VM, send: Callable[..., None], limit: TimeLimit) -> None:
        super().__init__(config, send)
        self._guest = guest
        self._limit = limit
        self.failed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.excinfo is None:
            return (yield)
        with self._limit.standing_still():
            if not self._config.getoption("fulltrace"):
                leave_out(call.excinfo)
            report = yield
            if report.failed:
                self.failed = True
                add_sections(report, self._guest)
        return report


class RunningProcess:
    """The inner pytest's end of a process that runs tests: `serve(its end, the inner pytest's)` there."""

    def __init__(self, serve: Callable[[socket.socket, socket.socket], None], what: str) -> None:
        self._what = what
        self._socket, theirs = socket.socketpair()
        die_with_parent = kill_with_parent()
        self._partial = b""
        self.alive = True
        self.keeps = False  # whether a guest of a failed test was kept: it ends with the template
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(die_with_parent, partial(serve, theirs, self._socket))
        theirs.close()

    def fileno(self) -> int:
        """Return what becomes readable when there is something to `read`."""
        return self._socket.fileno()

    def run(self, request: dict[str, Any]) -> None:
        """Have a test run."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `read` tells
            self._socket.sendall(json.dumps(request).encode() + b"\n")

    def read(self) -> tuple[bytes, bool]:
        """Return the lines that have come, and whether the test has ended."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._socket.recv(1 << 20)
        if not data:
            status = self._reap()
            text = f"{self._what} ended: {_describe(status)}"
            return _line("died", when="call", text=text), True
        whole, newline, self._partial = (self._partial + data).rpartition(b"\n")
        self.keeps = self.keeps or b'{"kind": "kept"' in whole
        last = whole.rpartition(b"\n")[2]
        return whole + newline, last.startswith((b'{"kind": "finished"', b'{"kind": "died"'))

    def close(self) -> None:
        """End it, and a test's process with it."""
        if self.alive:
            self._reap()

    def _reap(self) -> int:
        self.alive = False
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def template_process(configuration: Configuration, runner: Runner) -> RunningProcess:
    """Start the template of a configuration."""

    def serve(ours: socket.socket, other_end: socket.socket) -> None:
        _Template(configuration, runner, ours).serve(other_end)

    return RunningProcess(serve, "the guest's template process")


def plain_process(session: pytest.Session) -> RunningProcess:
    """Start a process that runs tests without a guest of ours, one after another, with their fixtures as ever."""

    def serve(ours: socket.socket, other_end: socket.socket) -> None:
        other_end.close()
        name_source_files()

        def send(kind: str, **more: Any) -> None:
            ours.sendall(_line(kind, **more))

        tests = {item.nodeid: item for item in session.items}
        sender = Sender(session.config, send)
        with ours.makefile("rb") as requests:
            for line in requests:
                request = json.loads(line)
                sender.run(tests[request["run"]], tests.get(request["next"]))
                send("finished")

    return RunningProcess(serve, "the process that ran the test")


class _Template:
    """A template process: boots its guest, and forks a process for each test."""

    def __init__(self, configuration: Configuration, runner: Runner, connection: socket.socket) -> None:
        self._configuration = configuration
        self._runner = runner
        self._connection = connection
        self._coverage: TemplateCoverage | None = None
        self._kept: dict[int, tuple[Child, str]] = {}  # by pidfd

    def serve(self, other_end: socket.socket) -> None:
        """Run the tests that the inner pytest names, one after another, until it ends."""
        other_end.close()
        modules = wanted(self._runner.config)
        guest = VM(cover=modules, **self._configuration.keywords())  # type: ignore[arg-type]
        template: Template | None = None
        trouble = ""
        try:
            guest.boot()
            guest.oracles.begin()
            if modules:
                self._coverage = TemplateCoverage(guest)
            template = Template(guest)
            name_source_files()
        except (PyvmmError, AssertionError) as error:
            trouble = boot_failure(guest, self._configuration, error)
        with self._connection.makefile("rb") as requests:
            while line := self._next(requests):
                request = json.loads(line)
                item = self._runner.tests[request["run"]]
                if template is None:
                    self._send("died", when="setup", text=trouble)
                else:
                    self._test(template, item, request["keep"])

    def _next(self, requests: BinaryIO) -> bytes:
        """Wait for the next request, and meanwhile for the ends of kept guests. Return nothing at the end."""
        while True:
            # A request comes only after the one before was answered: none can wait in the buffer of `requests`.
            ready, _, _ = select.select([self._connection.fileno(), *self._kept], [], [])
            for handle in [each for each in ready if each in self._kept]:
                child, name = self._kept.pop(handle)
                os.close(handle)
                child.wait()
                self._send("gone", name=name)
            if self._connection.fileno() in ready:
                return requests.readline()

    def _test(self, template: Template, item: pytest.Item, keep: Offer | None) -> None:
        _, seconds = item.stash[hooks.RESOLVED]
        tells, theirs = os.pipe2(os.O_CLOEXEC)
        child = template.fork(partial(self._in_child, item, TimeLimit(seconds, theirs), keep))
        os.close(theirs)
        handle = os.pidfd_open(child.pid)
        kept, overdue = wait_for_end(handle, tells, seconds)
        os.close(tells)
        trouble = ""
        if overdue:
            child.kill()
            trouble = f"the test was killed: {overdue}"
        elif kept and keep:
            self._kept[handle] = child, keep[0]
        elif status := child.wait():
            trouble = f"the test's process ended without a report: {_describe(status)}"
        if handle not in self._kept:
            os.close(handle)
        if self._coverage is not None and (record := self._coverage.news()) is not None:
            self._send("cover", record=record)
        if trouble:
            self._send("died", when="call", text=trouble)
        else:
            self._send("finished")

    def _in_child(self, item: pytest.Item, limit: TimeLimit, keep: Offer | None, guest: VM) -> None:
        limit.begin()
        failed = self._runner.run(item, guest, self._send, limit)
        limit.end()
        if failed and keep and not guest.ended:
            sys.argv[1:] = [item.nodeid]  # for `pyvmm ps`

            def kept() -> None:
                self._send("kept", name=keep[0])
                limit.keep()

            serve(guest, keep, kept)

    def _send(self, kind: str, **more: Any) -> None:
        self._connection.sendall(_line(kind, **more))


def _line(kind: str, **more: Any) -> bytes:
    return json.dumps({"kind": kind} | more, default=str).encode() + b"\n"


def _describe(status: int) -> str:
    if status < 0:
        return f"signal {-status} ({signal.Signals(-status).name})"
    return f"status {status}"


def _run_child(die_with_parent: Callable[[], None], run: Callable[[], None]) -> NoReturn:
    """Run in a forked process, and end it."""
    status = 70
    try:
        die_with_parent()
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
