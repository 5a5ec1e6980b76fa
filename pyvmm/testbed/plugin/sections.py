"""What the report of a failing test shows of its guest: the console's end, and the last messages with the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvmm.guest_text import clean

if TYPE_CHECKING:
    import pytest

    from pyvmm.testbed.plugin.configuration import Configuration
    from pyvmm.testbed.vm import VM

CONSOLE_LINES = 25
CONSOLE_LIMIT = 6000
"""Most lines and characters of the console in a report: a guest may write lines without end."""

CONSOLE = "the guest's console ends"


def add_sections(report: pytest.TestReport, guest: VM) -> None:
    """Add sections about the guest to the report of a failure."""
    if any(title == CONSOLE for title, _ in report.sections):
        return
    for title, made in PARTS:
        try:
            text = made(guest)
        except Exception as error:  # the test may have left the machine in any state
            text = f"(not to be had: {type(error).__name__}: {error})"
        if text:
            report.sections.append((title, text))


def console_tail(guest: VM) -> str:
    """Return the last lines of the console, each with its time since power-on."""
    lines = guest.console.tail(CONSOLE_LINES, CONSOLE_LIMIT)
    if not any(text for _, text in lines):
        return "(the guest has written nothing)"
    shown = [f"{guest.seconds(moment):>10.4f}  {text}" if moment else f"{'':10}  {text}" for moment, text in lines]
    return clean("\n".join([f"{'seconds':>10}", *shown]))


def findings(guest: VM) -> str:
    """Return all that `survives` has found, with registers, stacks and log lines; "" if that is nothing."""
    return clean("\n".join(each.text for each in guest.oracles.findings))


def messages(guest: VM) -> str:
    """Return the last trace events as a sequence diagram, by the clock of `console_tail`."""
    from pyvmm.analysis.diagram import as_entries, diagram
    from pyvmm.testbed.oracles.asking import BEGIN

    names = {number: str(name) for number, name in _channels(guest)}
    entries = as_entries(guest.trace.records, guest.seconds)
    return diagram(entries, channels=names, quiet=_quiet(guest), quiet_commands=BEGIN) or "(none)"


def _quiet(guest: VM) -> set[str]:
    """Return the devices whose messages come all the time, unless the test is about them."""
    if guest.machine.taps.rules is not None:
        return set()
    host = vars(guest).get("host")  # made as a test uses it
    return {"heartbeat", "timesync"} - (host.used if host is not None else set())


def faults(guest: VM) -> str:
    """Return what the fault rules have done, "" if the test has none."""
    if guest.machine.taps.rules is None:
        return ""
    return "\n".join([*map(str, guest.faults), *guest.faults.report()])


def _channels(guest: VM) -> Iterable[tuple[int, str]]:
    """Number and device of each channel."""
    for device in guest.vmbus.devices():
        yield device["relid"], device["name"]


PARTS = (
    (CONSOLE, console_tail),
    ("messages between host and guest", messages),
    ("fault rules", faults),
    ("what the oracles found", findings),
)


def boot_failure(guest: VM, configuration: Configuration, error: BaseException) -> str:
    """Return why a guest did not boot, with its console's end."""
    text = f"the guest ({configuration}) did not get ready for tests: {error}"
    return f"{text}\n{CONSOLE}:\n{console_tail(guest)}" if guest.console.text else text
