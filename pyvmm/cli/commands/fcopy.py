"""`pyvmm fcopy`: copies a file into a guest by Hyper-V's file copy service."""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from pyvmm.cli.output import echo, progress
from pyvmm.cli.target import connect, find, machine_options
from pyvmm.errors import ConfigError, PyvmmError
from pyvmm.files import FileError, open_regular

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

PIECE = 32 << 10
ANSWER_SECONDS = 40.0
"""Linux gives its daemon 30 s for an answer."""


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME] FILE PATH")
@machine_options
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.option("--parents", is_flag=True, help="Make missing folders.")
def fcopy(words: tuple[str, ...], name: str | None, socket: Path | None, overwrite: bool, parents: bool) -> None:
    """Copy a file into a guest, as its root, to any path: no network, no agent.

    PATH is absolute, and the file's own name is added if it ends in a slash. The machine needs the device fcopy, and
    the guest its daemon: `pyvmm run --device fcopy` brings both with our images.

    \b
    pyvmm fcopy notes.txt /root/
    pyvmm fcopy web build.tar /tmp/build.tar --overwrite
    """
    if not 2 <= len(words) <= 3:
        raise click.UsageError("give [NAME] FILE PATH")
    *given, source, path = words
    if not path.startswith("/"):
        raise ConfigError(f"{path}: not an absolute path; give one that begins with a slash")
    folder, _, file = path.rpartition("/")
    try:
        descriptor = open_regular(Path(source))
    except FileError as error:
        raise ConfigError(str(error)) from error
    with os.fdopen(descriptor, "rb") as data, connect(find(given[0] if given else None, name, socket)) as client:
        client.timeout = ANSWER_SECONDS
        size = os.fstat(data.fileno()).st_size
        about = {"folder": folder or "/", "file": file or Path(source).name, "size": size}
        client.execute("x-file-start", about | {"overwrite": overwrite, "create-path": parents})
        try:
            _write(client, data, size)
        except BaseException:
            with suppress(PyvmmError):
                client.execute("x-file-end", {"complete": False})
            raise
        finally:
            progress("")
        client.execute("x-file-end")
    echo(f"{folder}/{about['file']}: {size} bytes")


def _write(client: Client, data: BinaryIO, size: int) -> None:
    done = 0
    while done < size:
        piece = data.read(min(PIECE, size - done))
        if not piece:
            raise ConfigError(f"the file became shorter while it was read: {done} of {size} bytes")
        client.execute("x-file-write", {"data": b64encode(piece).decode()})
        done += len(piece)
        progress(f"{done * 100 // size} %")
