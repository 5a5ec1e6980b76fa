"""`pyvmm kill`: ends a machine by its monitor, by SIGTERM or by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.output import echo, print_json
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import HostError
from pyvmm.launch import exit_status

if TYPE_CHECKING:
    from pyvmm.client.registry import Entry

ANSWER_TIMEOUT = 2.0
"""Timeout, in seconds, for an answer and for the end of the process, before `kill` escalates."""
PATIENCE = 15.0
"""The same where `kill` cannot escalate: an emulated host is slow."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kill(given: str | None, name: str | None, socket: Path | None, as_json: bool) -> int:
    """End a machine at once, even if it does not answer, without notifying the guest.

    First its monitor is asked, then its process gets SIGTERM, then SIGKILL; each has two seconds.
    `pyvmm stop` lets the guest power itself off. A guest that pytest keeps in an emulated host gets no
    signal, which would end all of pytest.

    \b
    pyvmm kill
    pyvmm kill web
    """
    entry = find(given, name, socket)
    means = end(entry)
    if as_json:
        print_json({"name": entry.name, "pid": entry.pid, "ended-by": means})
    elif means is None:
        echo(f"{entry.name}: process {entry.pid} does not end")
    else:
        echo(f"{entry.name}: ended" + ("" if means == "quit" else f" by {means}: it did not answer"))
    return exit_status.ERROR if means is None else 0


def end(entry: Entry) -> str | None:
    """End the machine. Returns the means that worked: `quit`, `SIGTERM` or `SIGKILL`; None if none did."""
    if _quit(entry):
        return "quit"
    if not entry.pid:
        raise HostError(f"{entry.socket} does not answer, and its process is unknown: use `pyvmm kill NAME`")
    if entry.shared:
        raise HostError(
            f"{entry.name} does not answer, and process {entry.pid} runs more than it: Ctrl-C there ends them all"
        )
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, number)
        if _gone(entry, time.monotonic() + ANSWER_TIMEOUT):
            return number.name
    return None


def _quit(entry: Entry) -> bool:
    """Send `quit` to the monitor, and return whether the machine ended."""
    from pyvmm.client.qmp import Disconnected, TimedOut

    patience = PATIENCE if entry.shared else ANSWER_TIMEOUT
    try:
        with connect(entry, patience, start_timeout=0) as client:
            try:
                client.execute("quit")
                client.wait_event((), patience)
            except Disconnected:
                pass
    except TimedOut:
        return False
    except Disconnected:  # connection refused or lost: the machine is starting or ending
        pass
    return not entry.pid or _gone(entry, time.monotonic() + patience)


def _gone(entry: Entry, deadline: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Wait until `deadline` for the process to release the machine's name, and return whether it did."""
    from pyvmm.client.registry import running

    while any(each.name == entry.name and each.pid == entry.pid for each in running()):
        if clock() >= deadline:
            return False
        time.sleep(0.02)
    return True
