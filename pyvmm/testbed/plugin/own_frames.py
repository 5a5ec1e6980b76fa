"""Leaves pyvmm's own frames out of a failing test's traceback, so that it ends at the test's line.

They stay if they are of interest: where pyvmm itself has failed, i.e. raised what it does not mean for a test, and
with pytest's --full-trace.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pyvmm import errors
from pyvmm.api.results import CommandFailed
from pyvmm.errors import PyvmmError
from pyvmm.testbed.waits import GuestEnded, TimedOut

PACKAGE = f"{Path(errors.__file__).parent}/"
HOST = f"{PACKAGE}testbed/host/"
"""The raw host raises ValueError for an argument that it cannot send."""

FOR_TESTS = (TimedOut, GuestEnded, CommandFailed, PyvmmError)


def leave_out(error: pytest.ExceptionInfo[BaseException]) -> None:
    """Drop the frames from an exception's traceback as pytest shows it."""
    shown: Any = error
    files = [str(entry.path) for entry in shown.traceback]
    last = files[-1] if files else ""
    if last.startswith(PACKAGE) and not (
        isinstance(error.value, FOR_TESTS) or (type(error.value) is ValueError and last.startswith(HOST))
    ):
        return
    kept = [entry for entry in shown.traceback if not str(entry.path).startswith(PACKAGE)]
    if kept:
        shown.traceback = type(shown.traceback)(_chain([entry._rawentry for entry in kept]))


def _chain(entries: list[TracebackType]) -> TracebackType | None:
    """Return a traceback of these entries alone. pytest begins its own choice of frames from the raw traceback, which
    has all of them."""
    chain: TracebackType | None = None
    for each in reversed(entries):
        chain = TracebackType(chain, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return chain
