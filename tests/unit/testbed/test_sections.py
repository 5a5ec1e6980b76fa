"""Sections about the guest in a failing test's report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyvmm.testbed.console import Console
from pyvmm.testbed.plugin import sections
from pyvmm.testbed.plugin.sections import CONSOLE, add_sections, boot_failure, console_tail


def guest(text: str = "", **more: Any) -> Any:
    made = SimpleNamespace(seconds=lambda moment: 1.5, **more)
    made.console = Console(made)
    made.console.received(text.encode())
    return made


def test_the_console_is_shown_by_its_end_and_within_limits() -> None:
    assert console_tail(guest("".join(f"line {n}\n" for n in range(100)))).splitlines()[:2] == [
        "   seconds",
        "    1.5000  line 75",
    ]
    assert console_tail(guest("x" * 100_000)).count("x") == sections.CONSOLE_LIMIT
    assert console_tail(guest()) == "(the guest has written nothing)"


def test_a_guest_in_any_state_fails_no_report() -> None:
    report: Any = SimpleNamespace(sections=[])
    add_sections(report, guest("said"))  # which has no bus, no trace and no machine
    assert report.sections[0] == (CONSOLE, "   seconds\n    1.5000  said")
    assert report.sections[1][1].startswith("(not to be had: AttributeError")


def test_sections_are_added_once() -> None:
    report: Any = SimpleNamespace(sections=[])
    for _ in range(2):
        add_sections(report, guest("said"))
    assert [title for title, _ in report.sections].count(CONSOLE) == 1


def test_a_boot_that_fails_is_told_with_configuration_and_console() -> None:
    text = boot_failure(guest("Kernel panic\n"), "6.1-user-1cpu", AssertionError("not within 100 s: an agent"))  # type: ignore[arg-type]
    assert text.splitlines() == [
        "the guest (6.1-user-1cpu) did not get ready for tests: not within 100 s: an agent",
        f"{CONSOLE}:",
        "   seconds",
        "    1.5000  Kernel panic",
    ]
