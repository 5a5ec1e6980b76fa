"""`--pyvmm-cover MODULES`: coverage of the guests' modules over all tests of a session.

template: breakpoints placed once, before it is frozen
    | fork, a test runs: hits go into memory that it shares with the template
template: takes out what was seen, for the tests to come; {"kind": "cover", "record": ...} if there is something new
    | inner pytest, outer pytest; with pytest-xdist the worker, by its output
terminal summary, files
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm.errors import ConfigError, PyvmmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.cover.record import Record
    from pyvmm.testbed.vm import VM

OPTION = "pyvmm_cover"
SHOWN = 25
"""Functions of each module in the terminal's summary; the files have all."""

_NAME = "pyvmm-cover"
_WORKER_OUTPUT = "pyvmm_cover"


def wanted(config: pytest.Config) -> list[str]:
    """Return the modules to be covered."""
    given = config.getoption(OPTION) or ""
    return [name for name in given.replace("-", "_").split(",") if name]


def configure(config: pytest.Config) -> None:
    """Collect coverage in this session, if it was asked for. Raises pytest.UsageError for what cannot be."""
    if config.getoption(OPTION) is None:
        for name in ("html", "save"):
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
    config.pluginmanager.register(Collector(config), _NAME)


def collector(config: pytest.Config) -> Collector | None:
    """Return the session's coverage; None if it is off."""
    found: Collector | None = config.pluginmanager.getplugin(_NAME)
    return found


class Collector:
    """The coverage of one session, in the outer pytest: merges what templates and pytest-xdist's workers report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._modules = wanted(config)
        self._kernels: dict[str, Path] = {}  # by build id
        self._records: list[Record] = []

    def prepare(self, kernel: Path, say: Callable[[str], None]) -> None:
        """Disassemble the modules of a kernel before its guest boots: in an emulated host that would take minutes.

        Raises PyvmmError.
        """
        from pyvmm.cover.store import find_program

        for name in self._modules:
            find_program(name, kernel, None, lambda text: say(f"pyvmm: {text}"))

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

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:  # of pytest-xdist: the controller shows it
            output[_WORKER_OUTPUT] = self.merged().to_json()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        text = getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT)
        if text:
            self.add(text)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        record = self.merged()
        terminalreporter.section("coverage of the guests' modules")
        if not record.modules:
            terminalreporter.write_line("no guest ran")
            return
        try:
            for line in self._report(record):
                terminalreporter.write_line(line)
        except (PyvmmError, OSError) as error:
            terminalreporter.write_line(f"pyvmm: {error}", red=True)

    def _report(self, record: Record) -> list[str]:
        from pyvmm.cover.figures import Figures
        from pyvmm.cover.lines import NO_LINES
        from pyvmm.cover.page import page
        from pyvmm.cover.remote import program_of
        from pyvmm.cover.report import lines

        save, html = (self._config.getoption(f"pyvmm_cover_{name}") for name in ("save", "html"))
        figures = [Figures(program_of(each, None, None, lambda text: None), each) for each in record.modules.values()]
        text = [line for each in figures for line in (*lines(each, most=SHOWN), "")]
        if save:
            Path(save).write_text(record.to_json())
            text.append(f"wrote {save}: `pyvmm cover report {save} --missed` lists what did not run")
        if html:
            title = f"Coverage of {', '.join(self._modules)}"
            Path(html).write_text(page(title, [(each, NO_LINES) for each in figures]))
            text.append(f"wrote {html}")
        return text


class TemplateCoverage:
    """The coverage of one template's guests, in its process."""

    def __init__(self, guest: VM, modules: list[str]) -> None:
        self._guest = guest
        self._seen = -1
        guest.cover.start(*modules)

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
