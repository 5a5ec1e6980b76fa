"""`pyvmm host`: manages the emulated host: prepare, start and stop it, and run commands in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pyvmm.cli import output
from pyvmm.sizes import format_size


@click.group()
def host() -> None:
    """The emulated host: a small Linux with KVM in QEMU, where guests run if this computer's KVM is missing or slow.

    `pyvmm run` starts one automatically. It is booted once and its state saved, so that later starts take a second.

    \b
    pyvmm host prepare                  boot it and save its state now rather than at the first run
    pyvmm host start                    start one that later commands share
    pyvmm host exec -- uname -a         a command in one
    pyvmm host exec -- bash             a shell in one, with this computer's files
    """


def _say(text: str) -> None:
    output.echo(f"pyvmm: {text}", err=True)


_MEMORY = click.option(
    "--guest-memory",
    "-m",
    default="512M",
    show_default=True,
    metavar="SIZE",
    help="Memory of the guests it must hold.",
)


def _memory(guest_memory: str) -> int:
    """Return the memory in MiB of an emulated host for guests of that size."""
    from pyvmm.host.emulated import memory_for
    from pyvmm.sizes import parse_size

    return memory_for(parse_size(guest_memory) >> 20)


@host.command("exec", context_settings={"ignore_unknown_options": True})
@_MEMORY
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(guest_memory: str, command: tuple[str, ...]) -> int:
    """Run COMMAND in an emulated host and end with COMMAND's status.

    In the one that `pyvmm host start` has started, or else in a new one. The files are this computer's, writable;
    /proc, /sys, /dev and /run are the host's.
    """
    from pyvmm.host.commands import execute
    from pyvmm.launch.where import final_status_emulated

    return execute(list(command), memory_mib=_memory(guest_memory), progress=_say, final_status=final_status_emulated)


@host.command()
@_MEMORY
@click.option(
    "--idle", type=click.IntRange(min=1), default=1800, show_default=True, help="Seconds without a command."
)
def start(guest_memory: str, idle: int) -> None:
    """Start a host that later commands share, until it has been idle for a while."""
    from pyvmm.host import commands

    output.echo(commands.start(memory_mib=_memory(guest_memory), idle_seconds=idle, progress=_say))


@host.command()
def stop() -> None:
    """Stop the running host."""
    from pyvmm.host import commands

    output.echo(commands.stop())


@host.command()
@_MEMORY
def prepare(guest_memory: str) -> None:
    """Fetch what the emulated host needs, boot it and save its state; print how long a start takes."""
    from pyvmm.host.emulated import EmulatedHost

    memory = _memory(guest_memory)
    with EmulatedHost.start(memory_mib=memory, progress=_say, exact=True):
        pass
    begin = time.monotonic()
    with EmulatedHost.start(memory_mib=memory, progress=_say):
        seconds = time.monotonic() - begin
    output.echo(f"ready: starts in {seconds:.1f} s")


@host.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show whether an emulated host is running, its QEMU, the saved hosts and their disk usage."""
    from pyvmm.errors import HostError
    from pyvmm.host import cache_limits, commands, snapshot
    from pyvmm.host.qemu import find_qemu, version
    from pyvmm.paths import cache_folder

    folder = cache_folder("host")
    kept = snapshot.all_saved()
    facts: dict[str, Any] = {
        "kept-up": commands.status(),
        "folder": str(folder),
        "saved": [
            {
                "name": Path(each.folder).name,
                "memory": each.memory_mib << 20,
                "checkout": each.repository,
                "python": each.python,
                "disk": cache_limits.disk_usage(Path(each.folder)),
            }
            for each in kept
        ],
        "disk": cache_limits.disk_usage(folder),
        "limit": cache_limits.SAVED_BYTES,
    }
    try:
        facts["qemu"] = version(find_qemu())
    except HostError as error:
        facts["qemu"] = None
        facts["problem"] = str(error)
    if as_json:
        output.print_json(facts)
        return
    output.fields(
        [
            ("running", facts["kept-up"]),
            ("QEMU", facts["qemu"] or facts["problem"]),
            ("saved hosts", f"{len(kept)}" if kept else "none yet: `pyvmm host prepare` makes one"),
            *(
                ("", f"{format_size(each['memory'])} for {each['checkout']}, {format_size(each['disk'])} on disk")
                for each in facts["saved"]
            ),
            ("disk", f"{format_size(facts['disk'])} in {folder}; saved hosts may take {format_size(facts['limit'])}"),
        ],
        indent="",
    )


@host.command()
@click.option("--all", "everything", is_flag=True, help="Remove everything that is not in use.")
def clean(everything: bool) -> None:
    """Remove cached files of emulated hosts that are no longer needed.

    That is: what has not been used for 30 days, saved hosts of checkouts or Pythons that are gone, those past 2 GiB
    together (the longest unused first), and what killed processes left. Saving a host does the same.
    """
    from pyvmm.host import cache_limits

    removed = cache_limits.clear() if everything else cache_limits.tidy()
    output.echo("\n  ".join([f"{len(removed)} removed", *(path.name for path in removed)]))
