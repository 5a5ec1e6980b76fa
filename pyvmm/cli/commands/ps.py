"""`pyvmm ps`: lists all running machines."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli import output
from pyvmm.cli.target import connect
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.registry import Entry

ANSWER_TIMEOUT = 2.0
"""Seconds that `ps` waits for a machine's answer."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(as_json: bool) -> None:
    """List the running machines of this user."""
    from pyvmm.client.registry import running

    found = [(entry, _ask(entry)) for entry in running()]
    if as_json:
        rows = [asdict(entry) | {"socket": str(entry.socket), "status": about} for entry, about in found]
        output.print_json(rows)
        return
    if not found:
        output.echo("no VM is running")
        return
    output.table(("NAME", "PID", "STATUS", "MEMORY", "UPTIME", "COMMAND"), [_row(*each) for each in found])


def _ask(entry: Entry) -> dict[str, Any] | None:
    """Return the machine's x-status; only `status` while it is starting; None if it does not answer."""
    from pyvmm.client.qmp import Starting
    from pyvmm.errors import HostError

    try:
        with connect(entry, ANSWER_TIMEOUT, start_timeout=0) as client:
            reply: dict[str, Any] = client.execute("x-status")
            return reply
    except Starting:
        return {"status": "starting"}
    except HostError:
        return None


def _row(entry: Entry, about: dict[str, Any] | None) -> tuple[str, ...]:
    command = shlex.join(entry.argv)
    if sys.stdout.isatty() and len(command) > 50:
        command = command[:49] + "…"
    if about is None:
        return entry.name, str(entry.pid), "not answering", "", "", command
    actual = (about.get("memory") or {}).get("actual")
    memory = format_size(actual) if actual is not None else ""
    uptime = output.duration(about["uptime"]) if "uptime" in about else ""
    return entry.name, str(entry.pid), str(about.get("status", "?")), memory, uptime, command
