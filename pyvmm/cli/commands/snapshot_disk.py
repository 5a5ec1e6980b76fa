"""`pyvmm snapshot-disk`: copies a disk of a running machine while the guest's file systems are frozen."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, progress
from pyvmm.cli.target import connect, find, machine_options
from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

FREEZE_SECONDS = 60


@click.command("snapshot-disk")
@click.argument("words", nargs=-1, metavar="[NAME] DISK FILE")
@machine_options
@click.option(
    "--limit", type=click.IntRange(1, 600), default=FREEZE_SECONDS, show_default=True,
    help="Thaw the guest after so many seconds, whatever happens; the copy is then given up.",
)  # fmt: skip
@click.option("--no-freeze", is_flag=True, help="Copy without freezing: as after a power failure.")
def snapshot_disk(words: tuple[str, ...], name: str | None, socket: Path | None, limit: int, no_freeze: bool) -> None:
    """Copy a disk of a running machine to FILE, with its file systems in order.

    The guest's file systems are frozen meanwhile (VSS: the machine needs `--device vss`, the guest hv_vss_daemon,
    which our images then have), and thawed on every way out. A file system with shared blocks (btrfs, XFS) makes the
    copy at once; elsewhere it takes as long as the data. DISK is its id, as `pyvmm disk list` shows it.

    \b
    pyvmm snapshot-disk disk0 backup.img
    pyvmm snapshot-disk web disk0 backup.img --limit 300
    """
    if not 2 <= len(words) <= 3:
        raise click.UsageError("give [NAME] DISK FILE")
    *given, disk, file = words
    target = Path(file)
    if target.exists():
        raise ConfigError(f"{target}: exists already; remove it, or name another file")
    entry = find(given[0] if given else None, name, socket)
    with connect(entry, limit + 60) as client:
        source = _folder(entry.pid) / _image(client, disk)
        if no_freeze:
            shared = _copy(source, target)
        else:
            client.execute("x-vss-freeze", {"seconds": limit})
            shared = _copy_frozen(client, source, target)
    echo(f"{target}: a copy of {disk}" + (", which shares its blocks" if shared else ""))


def _query(client: Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.execute("query-block")
    return rows


def _image(client: Client, disk: str) -> Path:
    rows = _query(client)
    found = next((row for row in rows if row.get("device") == disk), None)
    if found is None:
        names = ", ".join(str(row.get("device")) for row in rows) or "none"
        raise ConfigError(f"no disk is called {disk!r}: there are {names}")
    inserted = found.get("inserted") or {}
    if inserted.get("drv") != "raw":
        raise ConfigError(f"{disk} is {inserted.get('drv')}: only raw images can be copied so")
    return Path(str(inserted["file"]))


def _folder(pid: int) -> Path:
    """Return the machine's working folder, from which a relative path of an image counts."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return Path()


def _copy_frozen(client: Client, source: Path, target: Path) -> bool:
    """Copy, then thaw; thaw if that fails, too."""
    try:
        shared = _copy(source, target)
    except BaseException:
        with suppress(PyvmmError):
            client.execute("x-vss-thaw")
        raise
    try:
        client.execute("x-vss-thaw")
    except PyvmmError as error:
        target.unlink(missing_ok=True)
        raise HostError(f"the copy was given up: {error}; a higher --limit may help") from error
    return shared


def _copy(source: Path, target: Path) -> bool:
    from pyvmm.disks.copy import copy_image

    try:
        return copy_image(source, target, lambda done: progress(f"{format_size(done)} of {source}"))
    finally:
        progress("")
