"""`pyvmm cp`: copies files and folders between the host and a running guest."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pyvmm.cli.output import echo, progress
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import HostError
from pyvmm.launch.where import print_message
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.copy import Counts
    from pyvmm.client.session import Session


def complete_place(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a machine's name with a colon, or a file."""
    names = [CompletionItem(f"{each}:") for each in complete_machine(ctx, param, incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="SOURCE... TARGET", shell_complete=complete_place)
@machine_options
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def cp(places: tuple[str, ...], name: str | None, socket: Path | None, quiet: bool) -> None:
    """Copy files and folders, with all in them, between this computer and a running guest.

    VM:PATH is in the guest; VM may be empty if only one runs. A TARGET that is a folder gets the SOURCEs into it;
    else the only SOURCE becomes it. Permissions, times and links are kept, owners are not.

    \b
    pyvmm cp vm:/var/log/messages .
    pyvmm cp -- build/tests vm:/tmp
    pyvmm cp :/proc/config.gz kernel-config.gz

    \b
    The guest needs pyvmm's initramfs and Hyper-V sockets (CONFIG_HYPERV_VSOCKETS).
    """
    from pyvmm.client.copy import Counts

    if len(places) < 2:
        raise click.UsageError("name what to copy, and where to")
    *sources, target = map(_split, places)
    machines = {vm for vm, _ in sources}
    counts = Counts()
    if target[0] is not None and machines == {None}:
        from pyvmm.client.copy import to_guest

        with_session = _open(target[0], name, socket)
        with _shown(counts):
            to_guest(with_session, [Path(path) for _, path in sources], target[1], counts)
    elif target[0] is None and None not in machines and len(machines) == 1:
        from pyvmm.client.copy import from_guest

        if len(sources) > 1 and not Path(target[1]).is_dir():
            raise click.UsageError(f"{target[1]} is no folder, and there are {len(sources)} files to copy")
        for vm, path in sources:
            session = _open(vm, name, socket)
            with _shown(counts):
                from_guest(session, path, Path(target[1]), counts, print_message)
    else:
        raise click.UsageError("copy between this computer and one guest: SOURCEs on one side, TARGET on the other")
    if not quiet:
        echo(f"{counts.files} file{'' if counts.files == 1 else 's'}, {counts.bytes} bytes", err=True)


@contextmanager
def _shown(counts: Counts) -> Iterator[None]:
    """Show on a terminal how far a copy is that takes longer than a second."""
    done = threading.Event()

    def show() -> None:
        while not done.wait(1.0):
            progress(f"{counts.files} files, {format_size(counts.bytes)}")

    thread = threading.Thread(target=show, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()
            progress("")


def _split(place: str) -> tuple[str | None, str]:
    """Return the machine (None: this computer) and the path of a place; ./a:b is a file of this computer."""
    vm, colon, path = place.partition(":")
    return (vm, path) if colon and "/" not in vm else (None, place)


def _open(vm: str | None, name: str | None, socket: Path | None) -> Session:
    from pyvmm.client.qmp import Refused
    from pyvmm.client.session import open_session

    entry = find(vm or None, name, socket)
    client = connect(entry)
    try:
        return open_session(client, say=print_message)
    except Refused as error:
        client.close()
        raise HostError(f"{error}; files cannot be copied") from error
