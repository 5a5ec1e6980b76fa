"""Boot tests run where Linux runs: on this KVM, or through `tests.support.inner_pytest` in the emulated host.

Where neither can, they are skipped with what is missing; with CI=true or PYVMM_REQUIRE_BOOT=1 they fail instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests.support`, when run as plain `pytest`

from pyvmm.testbed.plugin.where import required
from tests.support import inner_pytest
from tests.support.booted import Booted

FOLDER = Path(__file__).parent
collect_ignore = [] if os.environ.get("PYVMM_TEST_TREES") else ["test_own_kernels.py"]
"""`make test-kdir` builds the kernels for it."""

STALLS = 4
"""Emulated hosts that may stand still in one run of the tests."""
OUTSIDE = {"test_emulated_host.py", "test_balance_guests.py", "test_wheel.py"}
"""These start emulated hosts of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("boot")
    items.sort(key=_goes_in)  # last: once their hosts run, nothing else should start one beside them


def _goes_in(item: pytest.Item) -> bool:
    return FOLDER in item.path.parents and item.path.name not in OUTSIDE


class Door:
    """Decides once, at the first boot test, where all of them run.

    In emulated hosts the tests run chunk by chunk, each chunk in a host of its own, so that what tests do to it ends
    with them. A host has one CPU: as many run side by side as this machine has, ahead of the tests that pytest asks
    for.
    """

    def __init__(self, session: pytest.Session) -> None:
        self.here = inner_pytest.runs_here()
        self.missing = inner_pytest.what_is_missing(emulated=not self.here)
        self.stalls: list[str] = []
        self._chunks = inner_pytest.chunks([item.nodeid for item in session.items if _goes_in(item)])
        self._hosts: dict[int, inner_pytest.InnerPytest] = {}  # by chunk
        self._ahead = os.cpu_count() or 1

    def reports(self, nodeid: str) -> list[dict[str, Any]]:
        """A test's reports. A host that stands still is replaced, and the test begun again in the new one.

        Raises inner_pytest.Died: the inner pytest ended, the test found no end, or hosts stall again and again.
        """
        number = next(n for n, chunk in enumerate(self._chunks) if nodeid in chunk)
        for past in [n for n in self._hosts if n < number]:
            self._hosts.pop(past).close()
        for n in range(number, min(number + self._ahead, len(self._chunks))):
            if n not in self._hosts:
                self._hosts[n] = inner_pytest.InnerPytest(self._chunks[n])
        while True:
            try:
                return list(self._hosts[number].reports(nodeid))
            except inner_pytest.Stalled as error:
                self.stalls.append(f"{nodeid}: {str(error).splitlines()[0]}")
                if len(self.stalls) > STALLS:
                    raise
                self._hosts[number].close()
                chunk = self._chunks[number]
                self._hosts[number] = inner_pytest.InnerPytest(chunk[chunk.index(nodeid) :])

    def close(self) -> None:
        while self._hosts:
            self._hosts.popitem()[1].close()


_door = pytest.StashKey[Door]()
_stalls = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Run a boot test elsewhere, or let pytest run it."""
    if not _goes_in(item):
        return None
    stash = item.session.stash
    if _door not in stash:
        stash[_door] = Door(item.session)
        item.config.stash[_stalls] = stash[_door].stalls
    door = stash[_door]
    if door.here and not door.missing:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, door):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item, door: Door) -> Any:
    if door.missing:
        if required():
            yield _report(item, "setup", "failed", f"Linux must boot here (CI), but: {door.missing}")
        else:
            path, line, _ = item.location
            yield _report(item, "setup", "skipped", (path, line or 0, f"Skipped: {door.missing}"))
        yield _report(item, "teardown", "passed", None)
        return
    try:
        for data in door.reports(item.nodeid):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            if isinstance(report.longrepr, list):  # a skip's place and reason: JSON has no tuples, pytest insists
                report.longrepr = tuple(report.longrepr)
            yield report
    except inner_pytest.Died as error:
        yield _report(item, "call", "failed", str(error))


def _report(item: pytest.Item, when: Any, outcome: Any, longrepr: Any) -> pytest.TestReport:
    keywords = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(item.nodeid, item.location, keywords, outcome, longrepr, when)


def pytest_sessionfinish(session: pytest.Session) -> None:
    door = session.stash.get(_door, None)
    if door is not None:
        door.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Nothing is lost silently: say which hosts had to be replaced."""
    door = terminalreporter.config.stash.get(_stalls, None)
    for line in door or []:
        terminalreporter.write_line(f"emulated host replaced during {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows the guests that were running: console and trace."""
    report = yield
    if report.failed:
        for guest in Booted.running:
            report.sections += guest.sections()
    return report
