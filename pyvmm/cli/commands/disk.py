"""`pyvmm disk`: lists a machine's disks, adds and removes them while the guest runs, changes their size."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.commands.completion import files_by_ending
from pyvmm.cli.guest_options import DiskType, SizeType
from pyvmm.cli.output import echo, print_json, table
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError, HostError
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.disks.spec import DiskSpec

FOUND_LIMIT = 3.0
"""Seconds in which a guest's driver opens the controller that its first disk brings."""


@click.group()
def disk() -> None:
    """The disks of a running machine. A machine starts with those of `pyvmm run --disk`.

    NAME selects the machine; it may be left out while only one runs.

    \b
    pyvmm disk list
    pyvmm disk add web data.img,id=data     the guest finds /dev/sdb
    pyvmm disk resize web data 20G
    pyvmm disk remove web data              once the guest has unmounted it
    """


def _complete_place(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete a machine's name, or a disk's file."""
    return [*complete_machine(ctx, param, incomplete), *files_by_ending(".img", incomplete)]


def _complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a machine's name, or the id of a disk."""
    from pyvmm.errors import PyvmmError

    names = complete_machine(ctx, param, incomplete)
    try:
        with connect(find(None, ctx.params.get("name"), ctx.params.get("socket")), timeout=1.0) as client:
            names += [row["device"] for row in client.execute("query-block") if row["device"].startswith(incomplete)]
    except PyvmmError:
        pass
    return names


def _split(words: tuple[str, ...], what: str, count: int) -> tuple[str | None, tuple[str, ...]]:
    """Return the machine's name, if it is given, and the `count` words after it."""
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return words[0], words[1:]
    raise click.UsageError(f"give [NAME] {what}")


@disk.command("list")
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: QEMU's query-block.")
def list_(given: str | None, name: str | None, socket: Path | None, as_json: bool) -> None:
    """List a machine's disks, with what was read and written."""
    with connect(find(given, name, socket)) as client:
        rows: list[dict[str, Any]] = client.execute("query-block")
        stats = {row["device"]: row["stats"] for row in client.execute("query-blockstats")}
    if as_json:
        print_json(rows)
    elif not rows:
        echo("no disks; `pyvmm disk add FILE` adds one")
    else:
        header = ("ID", "LUN", "SIZE", "FORMAT", "", "READ", "WRITTEN", "STATE", "FILE")
        table(header, [_row(row, stats.get(row["device"], {})) for row in rows])


def _row(row: dict[str, Any], stats: dict[str, Any]) -> tuple[str, ...]:
    inserted = row.get("inserted", {})
    state = row.get("x-state", "?") if row.get("io-status", "ok") == "ok" else row["io-status"]
    return (
        str(row.get("device", "?")),
        str(row.get("x-lun", "?")),
        format_size(inserted.get("image", {}).get("virtual-size", 0)),
        str(inserted.get("drv", "?")),
        "ro" if inserted.get("ro") else "rw",
        format_size(stats.get("rd_bytes", 0)),
        format_size(stats.get("wr_bytes", 0)),
        str(state) + (f", {stats['x-failed']} failed" if stats.get("x-failed") else ""),
        str(inserted.get("file", "?")),
    )


@disk.command()
@click.argument("words", nargs=-1, metavar="[NAME] FILE[,ro][,id=ID]...", shell_complete=_complete_place)
@machine_options
def add(words: tuple[str, ...], name: str | None, socket: Path | None) -> None:
    """Add a disk to a machine while its guest runs. The options after FILE are those of `pyvmm run --disk`.

    \b
    pyvmm disk add data.img
    pyvmm disk add web data.img,ro,id=data
    pyvmm disk add data.qcow2,format=qcow2
    """
    given, (text,) = _split(words, "FILE[,ro][,id=ID]...", 1)
    spec: DiskSpec = DiskType().convert(text, None, None)
    with connect(find(given, name, socket)) as client:
        before = {row["device"] for row in client.execute("query-block")}
        sent = _send_file(client, spec) if spec.format in (None, "raw") else _send_served(client, spec)
        client.execute("device_add", _arguments(spec) | sent)
        added = [row for row in client.execute("query-block") if row["device"] not in before]
        opened = _wait_for_driver(client)
    for row in added:
        echo(f"{row['device']}: {format_size(row['inserted']['image']['virtual-size'])}, LUN {row['x-lun']}")
    if not opened:
        raise HostError(
            "the disk is there, but the guest has no driver for it: load hv_storvsc and sd_mod, or start with --disk"
        )


def _send_file(client: Client, spec: DiskSpec) -> dict[str, Any]:
    """Open and lock a raw image, and send it; return what device_add is told of it."""
    from pyvmm.disks.open import open_locked

    fd = open_locked(spec)
    try:
        client.execute("getfd", {"fdname": "disk"}, file=fd)
    finally:
        os.close(fd)
    return {"fd": "disk"}


def _send_served(client: Client, spec: DiskSpec) -> dict[str, Any]:
    """Start a storage daemon for an image and send its connections; return what device_add is told of them."""
    from pyvmm.client.qmp import Refused
    from pyvmm.disks.storage_daemon import start_daemon

    served = start_daemon(spec)
    names = [f"disk{number}" for number in range(len(served.connections))]
    size, flags = served.connections[0].size, served.connections[0].flags
    try:
        sent = [each.fileno() for each in served.connections]
        for name, fd in zip([*names, "line"], [*sent, served.line.fileno()], strict=True):
            client.execute("getfd", {"fdname": name}, file=fd)
    except Refused as error:
        raise ConfigError(
            f"{spec.path}: a {spec.format} image cannot be added in the emulated host: start it with --disk"
        ) from error
    finally:
        served.drop()
    return {"x-nbd": {"connections": names, "line": "line", "size": size, "flags": flags}}


def _arguments(spec: DiskSpec) -> dict[str, Any]:
    arguments: dict[str, Any] = {"driver": "scsi-hd", "file": os.path.abspath(spec.path)}
    arguments |= {"read-only": True} if spec.read_only else {}
    arguments |= {
        name: value
        for name, value in (
            ("id", spec.id),
            ("serial", spec.serial),
            ("werror", spec.werror),
            ("rerror", spec.rerror),
            ("format", spec.format),
        )
        if value
    }
    return arguments


def _wait_for_driver(client: Client) -> bool:
    """Wait for a driver in the guest to open the controller; return whether one has."""
    deadline = time.monotonic() + FOUND_LIMIT
    while True:
        rows = [row for row in client.execute("x-query-vmbus") if row["name"] == "storvsc"]
        if any(row["state"] == "open" for row in rows):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


@disk.command()
@click.argument("words", nargs=-1, metavar="[NAME] ID", shell_complete=_complete_id)
@machine_options
@click.option(
    "--timeout", type=Seconds(min=0), default=30.0, show_default=True, help="Seconds to wait for the guest."
)
def remove(words: tuple[str, ...], name: str | None, socket: Path | None, timeout: float) -> None:
    """Remove a disk from a machine, after the guest has flushed it and let go of it.

    Unmount it in the guest first: what is mounted then is lost, as with a disk that is pulled out.
    """
    given, (id,) = _split(words, "ID", 1)
    with connect(find(given, name, socket)) as client:
        if id not in [row["device"] for row in client.execute("query-block")]:
            raise ConfigError(f"no disk {id!r}; `pyvmm disk list` shows the ids")
        client.execute("device_del", {"id": id})
        deadline = time.monotonic() + timeout
        while True:
            _, data = client.wait_event({"DEVICE_DELETED"}, max(0.0, deadline - time.monotonic()))
            if data.get("device") == id:
                return


@disk.command()
@click.argument("words", nargs=-1, metavar="[NAME] ID SIZE", shell_complete=_complete_id)
@machine_options
def resize(words: tuple[str, ...], name: str | None, socket: Path | None) -> None:
    """Change the size of a disk's file; the guest sees it with its next command.

    A smaller size cuts the data behind it off.
    """
    given, (id, size) = _split(words, "ID SIZE", 2)
    wanted = SizeType().convert(size, None, None)
    with connect(find(given, name, socket)) as client:
        client.execute("block_resize", {"device": id, "size": wanted})
