"""`pyvmm stop`: powers a machine off like its power button, or ends it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.output import echo, print_json
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import HostError
from pyvmm.launch import exit_status
from pyvmm.launch.where import print_message

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--force", "-f", is_flag=True, help="End the machine at once, without notifying the guest.")
@click.option("--timeout", type=Seconds(min=0), default=60.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stop(given: str | None, name: str | None, socket: Path | None, force: bool, timeout: float, as_json: bool) -> int:
    """Ask a guest to power itself off, and wait until its machine has ended.

    A paused machine is resumed first: a paused guest cannot shut down.

    \b
    pyvmm stop
    pyvmm stop web --timeout 10 || pyvmm stop web --force

    \b
    Status 124 if the machine still runs after --timeout.
    """
    entry = find(given, name, socket)
    resumed = False
    with connect(entry) as client:
        begin = time.monotonic()
        if not force:
            resumed = _resume_paused(client, entry.name)
        _send(client, "quit" if force else "system_powerdown")
        ended = _wait(client, begin + timeout)
    seconds = time.monotonic() - begin
    if as_json:
        print_json({"name": entry.name, "ended": ended, "seconds": round(seconds, 3), "resumed": resumed})
    elif ended:
        echo(f"{entry.name}: ended after {seconds:.1f} s")
    else:
        echo(f"{entry.name}: still running after {timeout:g} s; `pyvmm stop {entry.name} --force` ends it")
    return 0 if ended else exit_status.TIMEOUT


def _resume_paused(client: Client, name: str) -> bool:
    """Resume a paused machine so that the guest can shut down; return whether it was paused. Raises HostError."""
    state = client.execute("query-status")["status"]
    if state in ("guest-panicked", "internal-error"):
        raise HostError(f"{name} is {state} and cannot shut down: `pyvmm stop {name} --force` ends it")
    if state == "debug":
        raise HostError(f"a debugger holds {name}: continue or detach there, or `pyvmm stop {name} --force`")
    if state not in ("paused", "prelaunch", "io-error"):
        return False
    client.execute("cont")
    print_message(f"{name} was paused: resumed, so that it can shut down")
    return True


def _send(client: Client, command: str) -> None:
    from pyvmm.client.qmp import Disconnected

    try:
        client.execute(command)
    except Disconnected:
        pass  # the machine ended, as requested, before it answered


def _wait(client: Client, deadline: float) -> bool:
    """Wait for the machine to close the connection, and return whether it did before the deadline."""
    from pyvmm.client.qmp import Disconnected, TimedOut

    try:
        client.wait_event((), max(0.0, deadline - time.monotonic()))
    except Disconnected:
        return True
    except TimedOut:
        return False
    raise AssertionError("no event has no name")
