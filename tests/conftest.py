"""What all tests share: `tests.support` can be imported, and Linux boots come last."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("PYVMM_STRICT", "1")  # pyvmm.contain: a mistake of ours fails the test, in programs too
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests.support`, when run as plain `pytest`


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's `&` starts its jobs so
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


QUICK = ("unit", "guest", "kvm", "fuzz")
"""Folders of tests in whose modules no process outlives its module."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mistake shows before Linux has booted. The order within each half stays."""
    items.sort(key=lambda item: item.get_closest_marker("boot") is not None)


@pytest.fixture(scope="module", autouse=True)
def no_child_survives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a module of quick tests that leaves a child process behind: later tests count or wait for theirs."""
    from tests.support.children import child_processes, survivors

    folder = request.path.relative_to(Path(__file__).parent).parts[0]
    before = set(child_processes())
    yield
    if folder in QUICK and (left := survivors(before)):
        pytest.fail(f"{request.path.name} leaves child processes behind: {', '.join(left)}", pytrace=False)
