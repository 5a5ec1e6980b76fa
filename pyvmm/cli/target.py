"""Selects the running machine of a command, and connects to its monitor."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.client.registry import Entry

START_LIMIT = 60.0
"""Seconds that a command waits for a machine that has claimed its name but has no monitor yet."""

CLAIM_LIMIT = 2.0
"""Seconds that a command waits for a machine to claim the given name."""

POLL = 0.05

NOTE_LIMIT = 500
"""Characters shown of the watchdog's stall note."""

Command = TypeVar("Command", bound=Callable[..., Any])


def complete_machine(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete names of running machines, except those already on the command line."""
    from pyvmm.client.registry import running
    from pyvmm.errors import PyvmmError

    given = ctx.params.get(param.name or "")
    try:
        found = [each.name for each in running() if each.name.startswith(incomplete)]
    except PyvmmError:
        return []
    return [name for name in found if not isinstance(given, tuple) or name not in given]


def machine_options(command: Command) -> Command:
    """Add the options --name and --socket."""
    command = click.option("--socket", type=click.Path(path_type=Path), help="The machine's QMP socket.")(command)
    return click.option("--name", shell_complete=complete_machine, help="The machine's name.")(command)


def find(given: str | None, name: str | None, socket: Path | None) -> Entry:
    """Return the machine selected by the argument, --name or --socket; without any, the only one that runs."""
    from pyvmm.client import registry

    which = [each for each in (given, name, socket) if each is not None]
    if len(which) > 1:
        raise click.UsageError("name the machine once: by NAME, --name or --socket")
    if socket is not None:
        return registry.Entry(socket.stem, socket)
    return registry.find(which[0] if which else None)


def find_soon(given: str | None, name: str | None, socket: Path | None) -> Entry:
    """Like `find`, but wait for a named machine that is about to start: `pyvmm run --name web & pyvmm wait web`."""
    from pyvmm.errors import ConfigError

    deadline = time.monotonic() + CLAIM_LIMIT
    while True:
        try:
            return find(given, name, socket)
        except ConfigError:
            if given is name is None or time.monotonic() > deadline:
                raise
            time.sleep(POLL)


def _stalled_at(entry: Entry) -> str:
    """Return where the machine's event loop is stalled, by its watchdog's note; empty if it is not."""
    from pyvmm.client.registry import stall_note

    try:
        place = stall_note(entry.socket).read_text(errors="replace")[:NOTE_LIMIT]
    except OSError:
        return ""
    return f"its event loop is stalled in {place}" if place and place.isprintable() else ""


def connect(entry: Entry, timeout: float = 10.0, *, start_timeout: float = START_LIMIT) -> Client:
    """Connect to the machine's monitor. Waits up to `start_timeout` seconds for a machine that is starting.

    Raises Starting if it has not started by then, TimedOut for a machine that does not answer within `timeout`
    seconds, and Disconnected if no process listens on the socket.
    """
    from pyvmm.client import registry
    from pyvmm.client.qmp import Client, Disconnected, Starting, TimedOut

    deadline = time.monotonic() + start_timeout
    while True:
        try:
            return Client(entry.socket, timeout)
        except (Disconnected, TimedOut) as error:
            silent = isinstance(error, TimedOut)
            if not registry.is_starting(entry, silent=silent):
                if not silent:
                    raise
                reasons = [_stalled_at(entry), f"`pyvmm kill {entry.name}` ends it" if entry.pid else ""]
                more = "; ".join(filter(None, reasons))
                raise TimedOut(f"{entry.name} does not answer" + (more and f": {more}")) from error
            if time.monotonic() >= deadline:
                raise Starting(f"{entry.name} is still starting; `pyvmm kill {entry.name}` ends it") from error
        time.sleep(POLL)
