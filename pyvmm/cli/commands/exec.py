"""`pyvmm exec`: runs a command in a running guest, with its input, output, errors, status and signals."""

from __future__ import annotations

import os
import signal
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.cli.words import RepeatableCommand, command_words
from pyvmm.errors import ConfigError
from pyvmm.launch import exit_status
from pyvmm.launch.where import print_message

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

SERIAL_SECONDS = 24 * 3600
"""Time limit of a command over the serial port."""


@click.command(cls=RepeatableCommand, context_settings={"allow_interspersed_args": False})
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal, as `pyvmm shell` has.")
@click.option("-n", "--no-input", is_flag=True, help="Give it no input: for loops that read standard input.")
@click.option("-C", "--directory", "folder", default="", metavar="DIR", help="Run it in this folder of the guest.")
@machine_options
@click.argument("words", nargs=-1, metavar="[VM] COMMAND...", type=click.UNPROCESSED, shell_complete=complete_machine)
@click.pass_context
def exec(
    ctx: click.Context,
    words: tuple[str, ...],
    tty: bool,
    no_input: bool,
    folder: str,
    name: str | None,
    socket: Path | None,
) -> int:
    """Run a command in a running guest.

    `--` before COMMAND stands for the only machine that runs. One word is a shell command, several are a program and
    its arguments. Input, output and errors are passed on apart, and signals: Ctrl-C interrupts the command. Status:
    the command's own, 128 + N if signal N killed it.

    \b
    pyvmm exec vm uname -a
    pyvmm exec -- 'dmesg | tail -20'
    tar -c folder | pyvmm exec vm tar -x -C /tmp
    pyvmm exec -t vm top

    \b
    A guest whose kernel has no Hyper-V sockets (CONFIG_HYPERV_VSOCKETS) runs it over its serial port: without input,
    terminal and signals, and with 256 KiB of output at most.
    """
    from pyvmm.client.qmp import Refused
    from pyvmm.client.session import SessionLost, attend, open_session, shell_words
    from pyvmm.launch.config_file import command_line

    before = command_words(ctx)[1:]
    dashes = before[: len(before) - len(words)][-1:] == ["--"]
    given, command = _split(words, named=dashes or name is not None or socket is not None)
    text = command_line(command)
    if text is None:
        raise click.UsageError("name the command to run")
    try:
        entry = find(given, name, socket)
    except ConfigError as error:
        if given is None:
            raise
        raise ConfigError(f"{error}; `pyvmm exec -- COMMAND` runs it in the only one there is") from error
    client = connect(entry)
    try:
        session = open_session(client, say=print_message)
    except Refused as error:
        with client:
            if error.qmp_class != "GenericError":
                raise
            print_message(f"{error}: over its serial port, without input, terminal and signals")
            return _over_serial(client, text, folder)
    try:
        return attend(session, shell_words(text, folder=folder, terminal=tty), stdin=None if no_input else 0, tty=tty)
    except SessionLost as error:
        print_message(str(error))
        return exit_status.GUEST_DIED


def _split(words: tuple[str, ...], *, named: bool) -> tuple[str | None, tuple[str, ...]]:
    """Return the machine's name, if there is one, and the command."""
    if not words or named:
        return None, words
    rest = words[1:]
    return words[0], rest[1:] if rest[:1] == ("--",) else rest


def _over_serial(client: Client, text: str, folder: str) -> int:
    import shlex

    if folder:
        text = f"cd {shlex.quote(folder)} || exit 126; {text}"
    client.timeout = SERIAL_SECONDS + 15.0
    reply = client.execute("x-execute", {"command": text, "timeout": SERIAL_SECONDS})
    for descriptor, key in ((1, "stdout"), (2, "stderr")):
        data = b64decode(reply[key])
        while data:
            data = data[os.write(descriptor, data) :]
    if reply["truncated"]:
        print_message("more output came than fits over the serial port: its end is lost")
    status: int = reply["status"]
    return status if 0 <= status <= 255 else 128 + signal.SIGKILL
