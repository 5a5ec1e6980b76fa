"""The processes that guests and tests run in, forked from the inner pytest.

    inner pytest --fork--> template, one for a configuration --fork--> a test's process
         |  "NODEID\n" ----------> |                                       |
         |  <---------------------------------------- report lines ------- |  ends
         |  <-- "finished"/"died" -|  <--------------- its status ---------|

Only one of template and test's process writes at a time. Each dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NoReturn

import pytest
from _pytest.runner import runtestprotocol

from pyvmm.errors import PyvmmError
from pyvmm.process import kill_with_parent
from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.configuration import Configuration
from pyvmm.testbed.plugin.cover import TemplateCoverage, wanted
from pyvmm.testbed.plugin.sections import add_sections, boot_failure
from pyvmm.testbed.plugin.session_fixtures import forget_finalizers
from pyvmm.testbed.template import Template
from pyvmm.testbed.vm import VM

GRACE = 15.0
"""Seconds for a test that has passed its time limit to end and report by itself, before it is killed."""


class Runner:
    """Runs tests of a session in forked processes, and sends their reports up."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.config = session.config
        self.tests = {item.nodeid: item for item in session.items}

    def run(self, item: pytest.Item, guest: VM, send: Callable[..., None]) -> None:
        """Run a test with its guest in this process."""
        forget_finalizers(self.session)
        self.config.stash[hooks.GUEST] = guest
        sender = _Sender(self.config, guest, send)
        self.config.pluginmanager.register(sender)
        try:
            runtestprotocol(item, log=True, nextitem=None)
        finally:
            self.config.pluginmanager.unregister(sender)
            del self.config.stash[hooks.GUEST]


class _Sender:
    """Sends reports as they come; a failed one has sections about the guest."""

    def __init__(self, config: pytest.Config, guest: VM, send: Callable[..., None]) -> None:
        self._config = config
        self._guest = guest
        self._send = send

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            add_sections(report, self._guest)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send("report", report=data)


class TemplateProcess:
    """The inner pytest's end of a template."""

    def __init__(self, configuration: Configuration, runner: Runner) -> None:
        self._socket, theirs = socket.socketpair()
        die_with_parent = kill_with_parent()
        self._partial = b""
        self.alive = True
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(die_with_parent, partial(_Template(configuration, runner, theirs).serve, self._socket))
        theirs.close()

    def fileno(self) -> int:
        """Return what becomes readable when there is something to `read`."""
        return self._socket.fileno()

    def run(self, nodeid: str) -> None:
        """Have a test run."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `read` tells
            self._socket.sendall(nodeid.encode() + b"\n")

    def read(self) -> tuple[bytes, bool]:
        """Return the lines that have come, and whether the test has ended."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self._socket.recv(1 << 20)
        if not data:
            status = self._reap()
            text = f"the guest's template process ended: {_describe(status)}"
            return _line("died", when="call", text=text), True
        whole, newline, self._partial = (self._partial + data).rpartition(b"\n")
        last = whole.rpartition(b"\n")[2]
        return whole + newline, last.startswith((b'{"kind": "finished"', b'{"kind": "died"'))

    def close(self) -> None:
        """End the template, and the test's process with it."""
        if self.alive:
            self._reap()

    def _reap(self) -> int:
        self.alive = False
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


class _Template:
    """A template process: boots its guest, and forks a process for each test."""

    def __init__(self, configuration: Configuration, runner: Runner, connection: socket.socket) -> None:
        self._configuration = configuration
        self._runner = runner
        self._connection = connection
        self._coverage: TemplateCoverage | None = None

    def serve(self, other_end: socket.socket) -> None:
        """Run the tests that the inner pytest names, one after another, until it ends."""
        other_end.close()
        guest = VM(**self._configuration.keywords())  # type: ignore[arg-type]
        template: Template | None = None
        trouble = ""
        try:
            guest.boot()
            if modules := wanted(self._runner.config):
                self._coverage = TemplateCoverage(guest, modules)
            template = Template(guest)
        except (PyvmmError, AssertionError) as error:
            trouble = boot_failure(guest, self._configuration, error)
        with self._connection.makefile("rb") as requests:
            for line in requests:
                item = self._runner.tests[line.decode().rstrip("\n")]
                if template is None:
                    self._send("died", when="setup", text=trouble)
                else:
                    self._test(template, item)

    def _test(self, template: Template, item: pytest.Item) -> None:
        _, seconds = item.stash[hooks.RESOLVED]
        child = template.fork(partial(self._in_child, item, seconds))
        status, trouble = 0, ""
        try:
            status = child.wait(seconds + GRACE)
        except TimeoutError:
            child.kill()
            trouble = f"the test was killed: it had not ended {GRACE:g} s after its limit"
        if status:
            trouble = f"the test's process ended without a report: {_describe(status)}"
        if self._coverage is not None and (record := self._coverage.news()) is not None:
            self._send("cover", record=record)
        if trouble:
            self._send("died", when="call", text=trouble)
        else:
            self._send("finished")

    def _in_child(self, item: pytest.Item, seconds: float, guest: VM) -> None:
        signal.signal(signal.SIGALRM, partial(_on_alarm, seconds))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        self._runner.run(item, guest, self._send)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _send(self, kind: str, **more: Any) -> None:
        self._connection.sendall(_line(kind, **more))


def _line(kind: str, **more: Any) -> bytes:
    return json.dumps({"kind": kind} | more, default=str).encode() + b"\n"


def _on_alarm(seconds: float, number: int, frame: Any) -> NoReturn:
    """Fail the test where it is; a second limit kills it."""
    __tracebackhide__ = True
    pytest.fail(f"the test has not ended within {seconds:g} s (the marker's timeout=)")


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
