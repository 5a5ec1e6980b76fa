"""`--pyvmm-cover MODULES`: coverage of the guests' modules over all tests of a session.

template: breakpoints placed once, as the guest loads the modules
    | fork, a test runs: hits go into memory that it shares with the template
template: takes out what was seen, for the tests to come; {"kind": "cover", "record": ...} if there is something new
    | inner pytest, outer pytest; with pytest-xdist the worker, by its output
terminal summary, files
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm.errors import ConfigError, PyvmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyvmm.cover.figures import Figures
    from pyvmm.cover.goals import Goal
    from pyvmm.cover.lines import Lines
    from pyvmm.cover.record import Record
    from pyvmm.cover.rules import Rules
    from pyvmm.testbed.vm import VM

OPTION = "pyvmm_cover"
SHOWN = 25
"""Functions of each module in the terminal's summary; the files have all."""

_NAME = "pyvmm-cover"
_WORKER_OUTPUT = "pyvmm_cover"
_WORKER_FILES = "pyvmm_cover_files"
MODULE_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")
"""Of files that may have lines; a vmlinux is read for a built-in module's blocks only."""


def wanted(config: pytest.Config) -> list[str]:
    """Return the modules to be covered."""
    given = config.getoption(OPTION) or ""
    return [name for name in given.replace("-", "_").split(",") if name]


def configure(config: pytest.Config) -> None:
    """Collect coverage in this session, if it was asked for. Raises pytest.UsageError for what cannot be."""
    if config.getoption(OPTION) is None:
        for name in ("html", "lcov", "save", "rules", "least"):
            if config.getoption(f"pyvmm_cover_{name}"):
                raise pytest.UsageError(f"--pyvmm-cover-{name} needs --pyvmm-cover MODULES")
        return
    if not wanted(config):
        raise pytest.UsageError("--pyvmm-cover needs modules: --pyvmm-cover hv_balloon,hv_vmbus")
    from pyvmm.cover.tools import load

    try:
        load("capstone")
        load("elftools.elf.elffile")
    except ConfigError as error:
        raise pytest.UsageError(f"--pyvmm-cover: {error}") from None
    from pyvmm.cover.goals import parse_goals
    from pyvmm.cover.rules import read_rules

    rules, least = (config.getoption(f"pyvmm_cover_{name}") for name in ("rules", "least"))
    try:
        found = None if rules is None else read_rules(Path(config.invocation_params.dir, rules))
        goals = parse_goals(least or "")
    except ConfigError as error:
        raise pytest.UsageError(f"--pyvmm-cover: {error}") from None
    if absent := [goal.module for goal in goals if goal.module not in wanted(config)]:
        raise pytest.UsageError(f"--pyvmm-cover-least: {absent[0]} is not among --pyvmm-cover's modules")
    config.pluginmanager.register(Collector(config, found, goals), _NAME)


def collector(config: pytest.Config) -> Collector | None:
    """Return the session's coverage; None if it is off."""
    found: Collector | None = config.pluginmanager.getplugin(_NAME)
    return found


class Collector:
    """The coverage of one session, in the outer pytest: merges what templates and pytest-xdist's workers report."""

    def __init__(self, config: pytest.Config, rules: Rules | None = None, goals: Sequence[Goal] = ()) -> None:
        self._config = config
        self._modules = wanted(config)
        self._rules = rules
        self._goals = goals
        self._files: dict[str, str] = {}  # of the modules by build id
        self._records: list[Record] = []
        self._figures: list[Figures] = []
        self._trouble: list[str] = []  # why the figures are not as they should be

    def prepare(self, kernel: Path, say: Callable[[str], None]) -> None:
        """Disassemble the modules of a kernel before its guest boots: in an emulated host that would take minutes.

        Raises PyvmmError.
        """
        from pyvmm.cover.boot import find_calls
        from pyvmm.cover.store import find_module, find_program

        for name in self._modules:
            program = find_program(name, kernel, None, lambda text: say(f"pyvmm: {text}"))
            self._files[program.build_id] = str(find_module(name, kernel))
        with suppress(ConfigError):  # a kernel that is packed: its modules are covered once it runs
            find_calls(kernel)

    def add(self, text: str) -> None:
        """Add what a template has seen."""
        from pyvmm.cover.record import parse_record

        self._records.append(parse_record(text, "a guest"))

    def merged(self) -> Record:
        """Return all of it; one run."""
        from pyvmm.cover.record import merged

        record = merged(self._records)
        record.runs = 1
        return record

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:  # of pytest-xdist: the controller shows it
            output[_WORKER_OUTPUT] = self.merged().to_json()
            output[_WORKER_FILES] = self._files
            return
        self._judge()
        if self._trouble and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        if text := output.get(_WORKER_OUTPUT):
            self.add(text)
        self._files |= output.get(_WORKER_FILES, {})

    def _judge(self) -> None:
        """Make the figures, and compare them with the goals."""
        from pyvmm.cover.figures import Figures
        from pyvmm.cover.goals import missed_goals
        from pyvmm.cover.remote import program_of

        try:
            self._figures = [
                Figures(program_of(each, None, None, lambda text: None), each, rules=self._rules)
                for each in self.merged().modules.values()
            ]
        except PyvmmError as error:
            self._trouble = [f"pyvmm: {error}"]
            return
        if self._goals:
            self._trouble = [f"too little coverage: {text}" for text in missed_goals(self._goals, self._figures)]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("coverage of the guests' modules")
        try:
            for line in self._report() if self._figures else ["no guest ran"]:
                terminalreporter.write_line(line)
        except (PyvmmError, OSError) as error:
            terminalreporter.write_line(f"pyvmm: {error}", red=True)
        for line in self._trouble:
            terminalreporter.write_line(line, red=True)

    def _report(self) -> Iterator[str]:
        from pyvmm.cover.export import lcov
        from pyvmm.cover.page import page
        from pyvmm.cover.report import lines

        for each in self._figures:
            yield from lines(each, most=SHOWN)
            yield ""
        named = ("save", "html", "lcov")
        save, html, trace = (self._config.getoption(f"pyvmm_cover_{name}") for name in named)
        if save:
            Path(save).write_text(self.merged().to_json())
            yield f"wrote {save}: `pyvmm cover report {save} --missed` lists what did not run"
        with_lines = [(each, self._lines(each.seen.build_id)) for each in self._figures] if html or trace else []
        if html:
            Path(html).write_text(page(f"Coverage of {', '.join(self._modules)}", with_lines))
            yield f"wrote {html}"
        if trace:
            Path(trace).write_text(lcov(with_lines))
            yield f"wrote {trace}"

    def _lines(self, build: str) -> Lines:
        """Return the source lines of a module; none without debug information."""
        from pyvmm.cover.lines import NO_LINES, read_lines

        path = self._files.get(build)
        return NO_LINES if path is None or not path.endswith(MODULE_SUFFIXES) else read_lines(Path(path))


class TemplateCoverage:
    """The coverage of one template's guests, in its process."""

    def __init__(self, guest: VM) -> None:
        self._guest = guest
        self._seen = -1

    def news(self) -> str | None:
        """Take out of the frozen guest what its forks have seen; return the record if there is more than before."""
        traps = self._guest.machine.traps
        assert traps is not None
        traps.settle()
        seen = sum(len(watched.seen) for watched in traps.modules.values())
        if seen == self._seen:
            return None
        self._seen = seen
        return self._guest.cover.record().to_json()
