"""Session fixtures in the inner pytest: made once, before any guest, and inherited by each test's process.

What is finished at the session's end is finished in the inner pytest alone: `forget_finalizers` sees to that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import pytest


def make_session_fixtures(session: pytest.Session, items: Iterable[pytest.Item]) -> None:
    """Make the tests' fixtures of session scope. One that fails does so in each of its tests."""
    setup_state: Any = session._setupstate
    setup_state.setup(session)
    folders: Any = getattr(session.config, "_tmp_path_factory", None)
    if folders is not None:
        folders.getbasetemp()  # made anew by who asks first, which must be no test
    for item in items:
        info: Any = getattr(item, "_fixtureinfo", None)
        request: Any = getattr(item, "_request", None)
        for name in () if info is None else info.names_closure:
            found = info.name2fixturedefs.get(name)
            if not found or found[-1].scope != "session" or found[-1].params:
                continue
            with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                request.getfixturevalue(name)


def forget_finalizers(session: pytest.Session) -> None:
    """In a test's process: leave the ends of inherited fixtures to the inner pytest."""
    stack: dict[Any, Any] = session._setupstate.stack
    for finalizers, _ in stack.values():
        finalizers.clear()
