"""Fixture `outcome` of the fault cases, and their rows for docs/linux-findings.md. The rest is the plugin's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm.testbed.plugin.hooks import INNER
from tests.hv.outcomes import PROPERTY, Outcome

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hv-all", action="store_true", help="run the long fault cases too")
    parser.addoption("--hv-rows", help="append the fault cases' rows to this file (tests.hv.findings)")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("pyvmm"):
        raise pytest.UsageError("tests/hv needs pyvmm's pytest plugin: pip install -e '.[dev]', and no -p no:pyvmm")
    config.addinivalue_line("markers", "long: a fault case that takes many seconds; only with --hv-all")
    config.addinivalue_line("markers", "fault(id, what): a fault case: the prediction's id, what the host does")
    rows = config.getoption("--hv-rows", None)
    if rows:
        config.pluginmanager.register(Rows(Path(rows), config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--hv-all", default=False):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


class Rows:
    """Appends the rows of finished fault cases to a file."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path = path
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        passed_on = self._config.stash.get(INNER, False) or hasattr(self._config, "workerinput")
        if report.when == "call" and not passed_on:  # else the pytest that the user started gets it too
            with self._path.open("a") as file:
                file.writelines(
                    json.dumps(value) + "\n" for name, value in report.user_properties if name == PROPERTY
                )


@pytest.fixture
def outcome(request: pytest.FixtureRequest, vm: VM) -> Outcome:
    """What became of the guest: see tests.hv.outcomes."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "a test with an outcome has the mark @fault(id, what)"
    case = request.node.nodeid.partition("[")[0].removeprefix("tests/hv/")
    properties = request.node.user_properties
    return Outcome(
        vm, case, marker.kwargs["id"], marker.kwargs["what"], lambda name, value: properties.append((name, value))
    )
