"""The table of tests and configurations at the end of a run with a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

SIGNS = {"passed": ".", "failed": "F", "error": "E", "skipped": "s", "xfailed": "x", "xpassed": "X"}
_WORST = ("", "passed", "skipped", "xfailed", "xpassed", "failed", "error")


class Results:
    """The outcome of each test in each configuration, from the reports: pytest-xdist's controller has no tests."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}

    def take(self, report: pytest.TestReport) -> None:
        """Add a report of a test of ours."""
        configuration: str = report.pyvmm_configuration
        row = self._rows.setdefault(_without(report.nodeid, configuration), {})
        row[configuration] = max(row.get(configuration, ""), _outcome(report), key=_WORST.index)

    def lines(self) -> Iterable[str]:
        """Return the table's lines; none if there is one configuration only."""
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        if len(columns) < 2:
            return
        yield ", ".join(f"{sign} {name}" for name, sign in SIGNS.items())
        for number, name in enumerate(columns):
            yield "  " * number + f"{name}  " + _totals(self._rows, name)
        for test, row in self._rows.items():
            marks = " ".join(SIGNS.get(row.get(name, ""), " ") for name in columns)
            yield f"{marks}  {test}"

    def write(self, reporter: Any) -> None:
        """Write the table, if there is one, to pytest's terminal reporter."""
        lines = list(self.lines())
        if lines:
            reporter.section("tests and configurations")
            for line in lines:
                reporter.write_line(line)


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return {"skipped": "xfailed", "passed": "xpassed"}.get(report.outcome, report.outcome)
    if report.failed and report.when != "call":
        return "error"
    return report.outcome


def _without(nodeid: str, configuration: str) -> str:
    """Return a test's id without its configuration: `test_a[6.12-user-2cpu-x]` is `test_a[x]`."""
    test, bracket, parameters = nodeid.partition("[")
    words = parameters.removesuffix("]")
    for shown in (f"{configuration}-", f"-{configuration}", configuration):
        if shown in words:
            words = words.replace(shown, "", 1)
            break
    return f"{test}{bracket}{words}]" if words else test


def _totals(rows: Mapping[str, Mapping[str, str]], column: str) -> str:
    found = [row[column] for row in rows.values() if column in row]
    counts = {name: found.count(name) for name in SIGNS}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
