"""Boot tests run where Linux runs: on this KVM, or through `tests.support.boot_hosts` in emulated hosts.

Where neither can, they are skipped with what is missing; with CI=true or PYVMM_REQUIRE_BOOT=1 they fail instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests.support`, when run as plain `pytest`

from pyvmm.testbed.plugin import hooks
from pyvmm.testbed.plugin.inner_process import Died
from pyvmm.testbed.plugin.passed_on import cannot_run, made_report, passed_on
from tests.support import boot_hosts
from tests.support.boot_hosts import BootHosts
from tests.support.booted import Booted

FOLDER = Path(__file__).parent
collect_ignore = [] if os.environ.get("PYVMM_TEST_TREES") else ["test_own_kernels.py"]
"""`make test-kdir` builds the kernels for it."""

OUTSIDE = {"test_emulated_host.py", "test_balance_guests.py", "test_wheel.py"}
"""These start emulated hosts of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("boot")
    items.sort(key=_goes_in)  # last: once their hosts run, nothing else should start one beside them


def _goes_in(item: pytest.Item) -> bool:
    return FOLDER in item.path.parents and item.path.name not in OUTSIDE


_hosts = pytest.StashKey[BootHosts]()
_missing = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Run a boot test elsewhere, or let pytest run it."""
    if not _goes_in(item) or hooks.INNER in item.config.stash:
        return None
    stash = item.config.stash
    if _missing not in stash:
        here = boot_hosts.runs_here()
        stash[_missing] = boot_hosts.what_is_missing(emulated=not here)
        if not here:
            stash[_hosts] = BootHosts([each for each in item.session.items if _goes_in(each)])
    if _hosts not in stash and not stash[_missing]:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    stash = item.config.stash
    if stash[_missing]:
        yield from cannot_run(item, stash[_missing])
        return
    try:
        for message in stash[_hosts].messages(item.nodeid):
            yield from passed_on(item, message)
    except Died as error:
        yield made_report(item, "call", "failed", str(error))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _hosts in session.config.stash:
        session.config.stash[_hosts].close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Nothing is lost silently: say which hosts had to be replaced."""
    hosts = terminalreporter.config.stash.get(_hosts, None)
    for line in hosts.stalls if hosts is not None else []:
        terminalreporter.write_line(f"emulated host replaced during {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows the guests that were running: console and trace."""
    report = yield
    if report.failed:
        for guest in Booted.running:
            report.sections += guest.sections()
    return report
