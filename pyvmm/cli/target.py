"""Which running machine a command means, and the connection to its monitor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyvmm.control.client import Client
    from pyvmm.control.registry import Entry

Command = TypeVar("Command", bound=Callable[..., Any])


def complete_machine(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of running machines, for the shell."""
    from pyvmm.control.registry import running
    from pyvmm.errors import PyvmmError

    try:
        return [each.name for each in running() if each.name.startswith(incomplete)]
    except PyvmmError:
        return []


def machine_options(command: Command) -> Command:
    """Add --name and --socket."""
    command = click.option("--socket", type=click.Path(path_type=Path), help="The machine's QMP socket.")(command)
    return click.option("--name", shell_complete=complete_machine, help="The machine's name.")(command)


def find(given: str | None, name: str | None, socket: Path | None) -> Entry:
    """The machine meant by an argument, --name or --socket; without any of them the only one that runs."""
    from pyvmm.control import registry

    which = [each for each in (given, name, socket) if each is not None]
    if len(which) > 1:
        raise click.UsageError("name the machine once: by NAME, --name or --socket")
    if socket is not None:
        return registry.Entry(socket.stem, socket)
    return registry.find(which[0] if which else None)


def connect(entry: Entry, timeout: float = 10.0) -> Client:
    """A connection to the machine's monitor."""
    from pyvmm.control.client import Client

    return Client(entry.socket, timeout)
