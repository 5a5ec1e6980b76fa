"""`pyvmm log`: prints a guest's recent console output, even if no console is attached (`--console none`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.output import echo, print_json
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.guest_text import Cleaner

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

WAIT = 3600.0
"""Seconds to wait for output: a guest may be silent for long. The machine's end closes the connection."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--lines", "-n", type=click.IntRange(min=0), help="Only the last N lines of what is kept.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the machine ends or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: `begin` and `end` count the console's bytes.")
def log(
    given: str | None, name: str | None, socket: Path | None, lines: int | None, follow: bool, as_json: bool
) -> None:
    """Show the end of a running guest's console: the last 64 KiB are kept, with or without a console attached.

    \b
    pyvmm log
    pyvmm log web -n 20
    pyvmm log web --follow

    On a terminal, control characters are shown as escapes (\\x1b), so that a guest cannot drive it.
    """
    with connect(find(given, name, socket)) as client:
        reply = client.execute("x-console-tail")
        reply["text"] = _last(reply["text"], lines)
        if as_json:
            print_json(reply)
            return
        show = _Shown()
        show(reply["text"])
        if follow:
            _follow(client, reply["end"], show)
        show.end()


def _last(text: str, lines: int | None) -> str:
    """Return the last `lines` lines of `text`."""
    if lines is None:
        return text
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""


class _Shown:
    """Writes console output to standard output: control characters are escaped on a terminal, and unchanged in a
    pipe or a file, where only CR LF becomes LF.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._cleaner = Cleaner()

    def __call__(self, text: str) -> None:
        if self._terminal:
            click.echo(self._cleaner.feed(text), nl=False)
        else:
            click.echo(text.replace("\r\n", "\n"), nl=False)

    def end(self) -> None:
        """Flush what the filter still holds, after the last output."""
        if self._terminal:
            click.echo(self._cleaner.end(), nl=False)


def _follow(client: Client, end: int, show: _Shown) -> None:
    """Show console output after byte `end` until the machine ends."""
    from pyvmm.client.qmp import Disconnected, TimedOut

    try:
        client.execute("x-console-subscribe", {"since": end})
        while True:
            try:
                _, found = client.wait_event({"X_CONSOLE"}, WAIT)
            except TimedOut:
                continue
            if found["begin"] > end:
                echo(f"\npyvmm: {found['begin'] - end} bytes came too fast and are lost", err=True)
            end = found["end"]
            show(found["text"])
    except Disconnected:
        return  # the machine has ended, and its console with it
