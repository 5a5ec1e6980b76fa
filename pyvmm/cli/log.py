"""`pyvmm log`: what a guest wrote to its console, also where nobody sees it (`--console none`, `-- COMMAND`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import print_json
from pyvmm.cli.target import complete_machine, connect, find, machine_options

if TYPE_CHECKING:
    from pyvmm.control.client import Client

POLL = 0.2
"""Seconds between two looks at a console that is followed."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--lines", "-n", type=click.IntRange(min=0), help="Only the last N lines of what is kept.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the machine ends or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: `begin` and `end` count the console's bytes.")
def log(
    given: str | None, name: str | None, socket: Path | None, lines: int | None, follow: bool, as_json: bool
) -> None:
    """Show the end of a running guest's console: the last 64 KiB are kept, whether or not somebody looked.

    \b
    pyvmm log
    pyvmm log web -n 20
    pyvmm log web --follow
    """
    with connect(find(given, name, socket)) as client:
        reply = client.execute("x-console-tail")
        reply["text"] = _last(reply["text"], lines)
        if as_json:
            print_json(reply)
            return
        click.echo(_clean(reply["text"]), nl=False)
        if follow:
            _follow(client, reply["end"])


def _last(text: str, lines: int | None) -> str:
    """The last `lines` lines of `text`."""
    if lines is None:
        return text
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""


def _clean(text: str) -> str:
    """A terminal's line ends as a file's."""
    return text.replace("\r\n", "\n")


def _follow(client: Client, end: int, sleep: Callable[[float], Any] = time.sleep) -> None:
    from pyvmm.control.client import Disconnected

    try:
        while True:
            sleep(POLL)
            reply = client.execute("x-console-tail", {"since": end})
            if reply["begin"] > end:
                click.echo(f"\npyvmm: {reply['begin'] - end} bytes came too fast and are lost", err=True)
            end = reply["end"]
            if reply["text"]:
                click.echo(_clean(reply["text"]), nl=False)
    except Disconnected:
        return  # the machine's end is the console's
