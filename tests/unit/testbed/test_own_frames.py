"""Tracebacks of failing tests end at the test's own line, unless pyvmm itself has failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.errors import ConfigError
from pyvmm.testbed.console import Console
from pyvmm.testbed.host.balloon import RawBalloon
from pyvmm.testbed.plugin.own_frames import leave_out
from pyvmm.testbed.vm import VM
from pyvmm.testbed.waits import GuestEnded, TimedOut


def vm(outcome: object = None) -> Any:
    """A VM that has started, without a machine."""
    made: Any = VM("debian-6.1")
    made.loop = SimpleNamespace(clock=None, step=lambda seconds: None)
    made.machine = SimpleNamespace(outcome=outcome, state="running")
    return made


def fails_in_the_test(bed: Any) -> None:
    def happened() -> bool:
        raise AssertionError("the test's own")

    bed.until(happened, 1, "x")


CASES: list[tuple[Any, type[BaseException], str]] = [
    (
        lambda bed: bed.until(lambda: False, 0.01, "a moon that is blue"),
        TimedOut,
        "not within 0.01 s: a moon that is",
    ),
    (lambda bed: bed.console.expect("x", 0.01), TimedOut, "not within 0.01 s: text like 'x' on the console; it ends"),
    (lambda bed: bed.balloon.resize("much"), ConfigError, "much"),
    (lambda bed: RawBalloon(None, None).send_unballoon([(0, -1)]), ValueError, "-1 pages at frame 0x0"),
    (fails_in_the_test, AssertionError, "the test's own"),
]


@pytest.mark.parametrize(("act", "kind", "text"), CASES)
def test_only_the_tests_frames_are_left(act: Any, kind: type[BaseException], text: str) -> None:
    bed = vm()
    bed.balloon.attach = None
    bed.machine = SimpleNamespace(
        outcome=None, state="running", balloon=None, monitor=SimpleNamespace(balloon_set=None)
    )
    with pytest.raises(kind, match=text) as error:
        act(bed)
    assert len(error.traceback) > 2
    leave_out(error)
    assert {str(entry.path) for entry in error.traceback} == {__file__}


def test_the_end_of_the_machine_is_told_with_what_was_waited_for() -> None:
    with pytest.raises(GuestEnded, match=r"the machine ended \(panic\) before: the end"):
        vm(outcome="panic").until(lambda: False, 1, "the end")


def test_an_error_of_pyvmm_itself_is_shown_whole() -> None:
    with pytest.raises(AttributeError) as error:
        Console(None).expect("x")  # type: ignore[arg-type]
    before = list(error.traceback)
    leave_out(error)
    assert list(error.traceback) == before and len(before) > 1
