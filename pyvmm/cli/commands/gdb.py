"""`pyvmm gdb`: attaches GDB to a running machine's kernel, by a connection to its monitor."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli.output import echo
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.client.registry import Entry


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--vmlinux", type=click.Path(path_type=Path), help="The kernel with symbols; default: as found.")
@click.option("--modules", type=click.Path(path_type=Path), help="A folder with the modules' files, for symbols.")
@click.option("--scripts", is_flag=True, help="Run the scripts of vmlinux's build tree: lx-symbols, lx-dmesg, ...")
@click.option("--ex", "commands", multiple=True, metavar="COMMAND", help="A command for GDB; repeatable.")
@click.option("--batch", is_flag=True, help="End after these commands, and let the guest run on.")
@click.option("--print", "show", is_flag=True, help="Print GDB's command line, and end.")
@click.option("--listen", metavar="HOST:PORT|PATH", help="Serve debuggers there, until Ctrl-C.")
@click.option("--pipe", is_flag=True, help="Speak GDB's protocol on standard input and output.")
def gdb(
    given: str | None,
    name: str | None,
    socket: Path | None,
    vmlinux: Path | None,
    modules: Path | None,
    scripts: bool,
    commands: tuple[str, ...],
    batch: bool,
    show: bool,
    listen: str | None,
    pipe: bool,
) -> None:
    """Debug a running guest's kernel with GDB. The guest stops; it runs on when GDB detaches or ends.

    Symbols come from the kernel's own vmlinux, or the build tree around its bzImage; --modules adds those of the
    modules that the guest has loaded now. `monitor info balloon` and the monitor's other commands work in GDB.

    \b
    pyvmm gdb
    pyvmm gdb web --vmlinux ~/linux/vmlinux --modules ~/linux
    pyvmm gdb web --batch --ex 'bt' --ex 'info threads'
    pyvmm gdb web --listen :1234                 for an IDE, or another computer's GDB
    (gdb) target remote | pyvmm gdb web --pipe

    docs/debugging.md has a session.
    """
    if sum((show, listen is not None, pipe)) > 1:
        raise click.UsageError("--print, --listen and --pipe exclude each other")
    entry = find(given, name, socket)
    if pipe:
        from pyvmm.client.gdb import relay

        relay(connect(entry), 0, 1)
        return
    if listen is not None:
        from pyvmm.client.gdb import serve
        from pyvmm.gdb_place import parse_place

        serve(parse_place(listen), lambda: connect(entry), lambda text: echo(text, err=True))
        return
    arguments = _command_line(entry, vmlinux, modules, commands, scripts=scripts, batch=batch)
    if show:
        echo(shlex.join(arguments))
        return
    if shutil.which("gdb") is None:
        raise ConfigError(
            "gdb is not installed (Debian: apt-get install gdb); --print shows how to connect another's"
        )
    os.execvp(arguments[0], arguments)


def _command_line(
    entry: Entry,
    vmlinux: Path | None,
    modules: Path | None,
    commands: tuple[str, ...],
    *,
    scripts: bool,
    batch: bool,
) -> list[str]:
    from pyvmm.client.gdb import find_scripts, find_vmlinux, symbol_commands

    with connect(entry) as client:
        found = vmlinux or find_vmlinux(Path(client.execute("x-status").get("kernel", "")))
        load = symbol_commands(client, modules) if modules is not None else []
    if vmlinux is not None and not vmlinux.is_file():
        raise ConfigError(f"--vmlinux {vmlinux}: no such file")
    pipe = shlex.join([sys.executable, "-P", "-m", "pyvmm", "gdb", "--socket", str(entry.socket), "--pipe"])
    arguments = ["gdb", "-q", *(["-batch"] if batch else [])]
    if scripts:
        for path in find_scripts(found):
            arguments += ["-iex", f"add-auto-load-safe-path {path}"]
    if found is not None:
        arguments.append(str(found))
    arguments += ["-ex", f"target remote | {pipe}"]
    for each in (*load, *commands):
        arguments += ["-ex", each]
    return arguments
