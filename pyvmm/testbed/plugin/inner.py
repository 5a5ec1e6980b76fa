"""The inner pytest, `python -m pyvmm.testbed.plugin.inner`: collects as the outer one, and runs the tests sent to it.

It runs no test and no guest itself: a template process for each configuration does, and children of that
(`templates`). So a guest that takes its process with it takes nothing else. Tests without a guest of ours, such as
this project's boot tests, run in one process more, without a fork for each.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import pytest

from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.configuration import Configuration
from pyvmm.testbed.plugin.inner_process import BEAT, Job
from pyvmm.testbed.plugin.session_fixtures import make_session_fixtures
from pyvmm.testbed.plugin.templates import Runner, RunningProcess, plain_process, template_process

TEMPLATES = 4
"""Most templates kept; the longest unused goes first."""


class Pipe:
    """JSON lines from and to the outer pytest."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self._writer = writer
        self._partial = b""
        self._lines: list[bytes] = []

    def read(self) -> dict[str, Any]:
        """Wait for the next line. Raises EOFError at the end."""
        while not self._lines:
            self.fill()
        return self.next() or {}

    def fill(self) -> None:
        """Read what has come, at least a byte. Raises EOFError at the end."""
        data = os.read(self.reader, 1 << 16)
        if not data:
            raise EOFError
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._lines += lines

    def next(self) -> dict[str, Any] | None:
        """Return the next line that has been read, None if there is none."""
        if not self._lines:
            return None
        found: dict[str, Any] = json.loads(self._lines.pop(0))
        return found

    def send(self, kind: str, **more: Any) -> None:
        """Write one line."""
        self.send_line(json.dumps({"kind": kind} | more, default=str).encode() + b"\n")

    def send_line(self, line: bytes) -> None:
        """Write lines that are ready."""
        while line:
            line = line[os.write(self._writer, line) :]


class InnerPlugin:
    """Makes pytest collect the job's files, and serve instead of running them."""

    def __init__(self, job: Job, pipe: Pipe) -> None:
        self._job = job
        self._pipe = pipe
        self._collect_errors: list[str] = []
        self._templates: dict[Configuration | None, RunningProcess] = {}  # the longest unused first

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Take back what is the outer pytest's to do: selection, distribution, files of results."""
        for name, value in _OUTER_OPTIONS.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.option.basetemp = self._job.basetemp
        config.args[:] = self._job.files
        # Plugins that write results see by these that another process does.
        config.workerinput = {  # type: ignore[attr-defined]
            "workerid": self._job.worker or "master", "workercount": 1, "testrunuid": "", "mainargv": sys.argv,
        }  # fmt: skip
        config.workeroutput = {}  # type: ignore[attr-defined]
        config.stash[hooks.INNER] = True

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        for name in ("terminalreporter", "_cov"):
            if config.pluginmanager.hasplugin(name):
                config.pluginmanager.unregister(name=name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._collect_errors.append(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = {item.nodeid: item for item in session.items}
        chosen = [tests[each] for each in self._job.nodeids if each in tests]
        make_session_fixtures(session, [item for item in chosen if hooks.needs_guest(item)])
        self._pipe.send("ready")
        try:
            while True:
                request = self._next()
                if item := tests.get(request["run"]):
                    self._run(item, request)
                else:
                    text = f"the inner pytest has not collected {request['run']}"
                    self._pipe.send("died", when="setup", text="\n".join([text, *self._collect_errors]))
        except (EOFError, BrokenPipeError):
            return True
        finally:
            for template in self._templates.values():
                template.close()

    def _next(self) -> dict[str, Any]:
        """Wait for the next request; meanwhile beat, and pass on that kept guests have ended. Raises EOFError."""
        while (request := self._pipe.next()) is None:
            templates = {template.fileno(): each for each, template in self._templates.items()}
            ready, _, _ = select.select([self._pipe.reader, *templates], [], [], BEAT)
            for descriptor in ready:
                if descriptor == self._pipe.reader:
                    self._pipe.fill()
                    continue
                lines, _ = self._templates[templates[descriptor]].read()
                if self._templates[templates[descriptor]].alive:
                    self._pipe.send_line(lines)
                else:
                    del self._templates[templates[descriptor]]
            if not ready:
                self._pipe.send("beat")
        return request

    def _run(self, item: pytest.Item, request: dict[str, Any]) -> None:
        """Have a test run, pass its messages on, and beat meanwhile. Raises EOFError if the outer pytest ends."""
        template = self._template(item)
        template.run(request)
        while True:
            ready, _, _ = select.select([template.fileno(), self._pipe.reader], [], [], BEAT)
            if template.fileno() in ready:
                lines, ended = template.read()
                self._pipe.send_line(lines)
                if ended:
                    if not template.alive:
                        del self._templates[_configuration(item)]
                    return
            elif ready:
                self._pipe.fill()  # requests for later
            else:
                self._pipe.send("beat")

    def _template(self, item: pytest.Item) -> RunningProcess:
        configuration = _configuration(item)
        template = self._templates.pop(configuration, None)
        if template is None:
            spare = [each for each, old in self._templates.items() if not old.keeps]
            if spare and len(self._templates) >= TEMPLATES:
                self._templates.pop(spare[0]).close()
            if configuration is None:
                template = plain_process(item.session)
            else:
                self._pipe.send("booting", configuration=str(configuration))
                template = template_process(configuration, Runner(item.session))
        self._templates[configuration] = template
        return template


def _configuration(item: pytest.Item) -> Configuration | None:
    """Return the configuration of a test's guest, None if it needs none of ours."""
    return item.stash[hooks.RESOLVED][0] if hooks.needs_guest(item) else None


_OUTER_OPTIONS: dict[str, Any] = {
    "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False, "newfirst": False,
    "stepwise": False, "stepwise_skip": False, "maxfail": 0, "collectonly": False, "xmlpath": None, "usepdb": False,
    "trace": False, "durations": None, "numprocesses": None, "dist": "no", "tx": [], "looponfail": False,
    "distload": False, "pastebin": None, "cacheclear": False, "cacheshow": None, "setuponly": False,
    "setupplan": False,
}  # fmt: skip


def main() -> int:
    """Run the job that is the first line of standard input."""
    # Standard output is the pipe's alone: what tests write goes to standard error.
    pipe = Pipe(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    job = Job(**pipe.read())
    sys.path[:] = [*job.path, *(place for place in sys.path if place not in job.path)]
    arguments = [*job.arguments, "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    return int(pytest.main(arguments, plugins=[InnerPlugin(job, pipe)]))


if __name__ == "__main__":
    sys.exit(main())
