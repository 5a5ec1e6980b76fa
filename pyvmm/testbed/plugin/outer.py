"""The outer pytest's side: starts the inner pytest at the first test of ours, and turns its messages into reports.

The reports are pytest's own, so that -k, -x, --lf, durations and JUnit files are as if the tests had run here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pyvmm.errors import PyvmmError
from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.configuration import Configuration
from pyvmm.testbed.plugin.cover import collector
from pyvmm.testbed.plugin.inner_process import Died, InnerProcess, Stalled
from pyvmm.testbed.plugin.keep import KeptGuests, free_names
from pyvmm.testbed.plugin.passed_on import cannot_run, job_for, made_report, passed_on
from pyvmm.testbed.plugin.selection import configuration_of, repeat_command
from pyvmm.testbed.plugin.where import find_where

STALLS = 3
"""Emulated hosts that may stand still in one session."""
BOOT_ALLOWANCE = 260.0
"""Seconds more for a test that its configuration's guest is booted for."""
HOST_MIB = 2560
"""Smallest emulated host: for some guests of 512 MiB side by side, and one that grows to 2 GiB."""
_MIB = 1 << 20


class Outer:
    """One inner pytest at a time, for the session's tests of ours in their order."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._config = session.config
        self._tests = [item for item in session.items if hooks.needs_guest(item)]
        self._where = find_where(self._config)
        self._inner: InnerProcess | None = None
        self._starts: str = ""  # why the inner pytest cannot be had
        self._stalls = 0
        self._images: dict[Configuration, str] = {}
        self._coverage = collector(self._config)
        keep = self._config.getoption("pyvmm_keep_failed") and not self._where.missing
        self._kept = KeptGuests(free_names(self._worker) if keep else [], register=self._where.emulated)

    @property
    def _worker(self) -> str:
        """pytest-xdist's name for this process, empty if it is no worker."""
        return str(getattr(self._config, "workerinput", {}).get("workerid", ""))

    def run(self, item: pytest.Item) -> None:
        """Run one test in the inner pytest, and report it."""
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        failed = False
        for report in self._reports(item):
            report.pyvmm_configuration = str(configuration_of(item))  # type: ignore[attr-defined]
            if report.failed and not failed:
                failed = True
                report.sections.append(("repeat this test", repeat_command(self._config, item)))
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def close(self) -> None:
        """End the inner pytest, once no kept guest runs any more or Ctrl-C is pressed."""
        if self._inner is not None:
            with contextlib.suppress(Died, KeyboardInterrupt):
                self._wait_for_kept(self._inner)
            self._end_inner()
        self._kept.close()

    def _wait_for_kept(self, inner: InnerProcess) -> None:
        if self._kept:
            self._say("pyvmm: guests of failed tests run on; Ctrl-C ends them")
            for message in inner.wait():
                if message["kind"] == "gone":
                    self._kept.take(message, "")
                if not self._kept:
                    return

    def _end_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        if self._where.missing:
            yield from cannot_run(item, self._where.missing)
            return
        configuration, timeout = item.stash[hooks.RESOLVED]
        if trouble := self._image_trouble(configuration):
            yield made_report(item, "setup", "failed", f"pyvmm: {trouble}")
            yield made_report(item, "teardown", "passed", None)
            return
        while True:
            try:
                inner = self._started()
                start = inner.log_size()
                for message in inner.run(item.nodeid, timeout + BOOT_ALLOWANCE, self._kept.offer()):
                    for report in self._report(item, message):
                        if message["kind"] == "died" and (text := inner.log_part(start)):
                            report.sections.append(("what it wrote last", text))
                        yield report
                return
            except Stalled as error:
                self._end_inner()
                self._stalls += 1
                if self._stalls > STALLS:
                    yield made_report(item, "call", "failed", str(error))
                    return
                self._say(f"pyvmm: {str(error).splitlines()[0]}: another one is started, and the test repeated")
            except Died as error:
                self._end_inner()
                yield made_report(item, "call", "failed", str(error))
                return

    def _report(self, item: pytest.Item, message: dict[str, Any]) -> Iterator[pytest.TestReport]:
        match message["kind"]:
            case "cover" if self._coverage is not None:
                self._coverage.add(message["record"])
            case "booting":
                self._say(f"pyvmm: booting {message['configuration']}", quietly=True)
            case "kept" | "gone":
                if line := self._kept.take(message, item.nodeid):
                    self._say(line)
            case _:
                yield from passed_on(item, message)

    def _image_trouble(self, configuration: Configuration) -> str:
        """Make what the configuration boots, image or initramfs, in the cache; return why that cannot be."""
        if configuration not in self._images:
            from pyvmm.launch.build import build_config

            try:
                made = build_config(configuration.options(), progress=lambda line: self._say(f"pyvmm: {line}"))
                if self._coverage is not None:
                    self._coverage.prepare(made.kernel, self._say)
                self._images[configuration] = ""
            except PyvmmError as error:
                self._images[configuration] = str(error)
        return self._images[configuration]

    def _started(self) -> InnerProcess:
        if self._inner is None:
            show = self._config.getoption("capture") == "no"
            where = "the emulated host, and pytest in it" if self._where.emulated else "the inner pytest"
            self._say(f"pyvmm: starting {where}", quietly=True)
            factory: Any = getattr(self._config, "_tmp_path_factory", None)
            basetemp = None if factory is None else str(factory.mktemp("pyvmm"))
            job = job_for(self._config, self._tests, worker=self._worker, basetemp=basetemp)
            self._inner = InnerProcess(job, self._launcher(), show=show, progress=self._say)
            self._inner.wait_ready()
        return self._inner

    def _launcher(self) -> list[str]:
        if not self._where.emulated:
            return []
        most = max(configuration_of(item).options().memory.most for item in self._tests) // _MIB
        memory = max(HOST_MIB, 2 * most + 512)
        forwards = [word for socket in self._kept.sockets for word in ("--forward", socket)]
        return [sys.executable, "-m", "pyvmm.host", "exec", "--memory", str(memory), *forwards, "--"]

    def _say(self, line: str, *, quietly: bool = False) -> None:
        """Show a line of progress; `quietly`: on a terminal only."""
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and (reporter.isatty or not quietly):
            reporter.ensure_newline()
            reporter.write_line(line)
