"""What an inner pytest does with tests, as reports of the outer one."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pyvmm.testbed.plugin.inner_process import Job
from pyvmm.testbed.plugin.where import required


def job_for(
    config: pytest.Config, tests: Sequence[pytest.Item], *, worker: str = "", basetemp: str | None = None
) -> Job:
    """Return the job of collecting these tests in an inner pytest."""
    return Job(
        arguments=[str(word) for word in config.invocation_params.args],
        folder=str(config.invocation_params.dir),
        files=list(dict.fromkeys(str(item.path) for item in tests)),
        nodeids=[item.nodeid for item in tests],
        path=[os.path.abspath(place) for place in sys.path],
        worker=worker,
        basetemp=basetemp,
    )


def passed_on(item: pytest.Item, message: dict[str, Any]) -> Iterator[pytest.TestReport]:
    """Pass on a warning or the end of the session; yield the report that a message brings."""
    match message["kind"]:
        case "report":
            report: Any = item.config.hook.pytest_report_from_serializable(config=item.config, data=message["report"])
            if isinstance(report.longrepr, list):  # a skip's place and reason: JSON has no tuples, pytest insists
                report.longrepr = tuple(report.longrepr)
            yield report
        case "died":
            yield made_report(item, message["when"], "failed", message["text"])
        case "warning":
            _pass_on_warning(item.config, message)
        case "exit":
            pytest.exit(message["text"], message["status"])


def cannot_run(item: pytest.Item, missing: str) -> Iterator[pytest.TestReport]:
    """Yield the reports of a test that can run nowhere: skipped, or failed in CI."""
    if required():
        yield made_report(item, "setup", "failed", f"Linux must boot here (CI), but: {missing}")
    else:
        path, line, _ = item.location
        yield made_report(item, "setup", "skipped", (path, line or 0, f"Skipped: {missing}"))
    yield made_report(item, "teardown", "passed", None)


def _pass_on_warning(config: pytest.Config, message: dict[str, Any]) -> None:
    module, name = message["category"]
    category: Any = getattr(sys.modules.get(module), name, UserWarning)
    try:
        shown = category(message["text"])
    except Exception:  # one that wants other arguments
        category, shown = UserWarning, UserWarning(message["text"])
    made = warnings.WarningMessage(shown, category, message["file"], message["line"])
    location = message["location"] and tuple(message["location"])
    values = {"warning_message": made, "when": message["when"], "nodeid": message["nodeid"], "location": location}
    config.hook.pytest_warning_recorded.call_historic(kwargs=values)


def made_report(item: pytest.Item, when: Any, outcome: Any, longrepr: Any) -> pytest.TestReport:
    """Return a report for a test that has none of its own."""
    keywords: Any = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(item.nodeid, item.location, keywords, outcome, longrepr, when)
