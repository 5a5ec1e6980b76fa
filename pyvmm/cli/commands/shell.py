"""`pyvmm shell`: a login shell in a running guest, on this terminal."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError, HostError
from pyvmm.launch import exit_status
from pyvmm.launch.where import print_message


@click.command()
@click.argument("given", required=False, metavar="[VM]", shell_complete=complete_machine)
@machine_options
def shell(given: str | None, name: str | None, socket: Path | None) -> int:
    """Open a shell in a running guest, with this terminal's size; as many at once as you like.

    `exit` ends it, with the shell's status; so does Enter ~ . where the guest does not answer. One command with a
    terminal: `pyvmm exec -t`. A guest without Hyper-V sockets has a shell on its console only, in `pyvmm run`.
    """
    from pyvmm.client.qmp import Refused
    from pyvmm.client.session import SessionLost, attend, login_words, open_session

    if not os.isatty(0):
        raise ConfigError("a shell needs a terminal: `pyvmm exec VM COMMAND` runs a command with input from a pipe")
    entry = find(given, name, socket)
    with connect(entry) as client:
        try:
            session = open_session(client, say=print_message)
        except Refused as error:
            raise HostError(f"{error}: its shell is on its console, in the terminal of `pyvmm run`") from error
    try:
        return attend(session, login_words(), tty=True)
    except SessionLost as error:
        print_message(str(error))
        return exit_status.GUEST_DIED
