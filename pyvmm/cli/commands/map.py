"""`pyvmm map`: shows who owns which page of a running guest."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from pyvmm.cli.output import echo, painted, print_json
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError

WIDTH = 80
"""Columns of output that is no terminal."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every span, with addresses in bytes.")
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE", help="Write a picture to a file instead.")
@click.option("--width", type=click.IntRange(min=40, max=1000), help="Columns. Default: the terminal's.")
def map(
    given: str | None, name: str | None, socket: Path | None, as_json: bool, svg: Path | None, width: int | None
) -> None:
    """Show who owns which page of a guest's address space now.

    A character stands for a piece of it: RAM of the guest, memory that is out (the balloon has given it to the host),
    hot-added memory, the part of the hot-add window that is no RAM. Letters are pages that the guest shares with
    Hyper-V and the VMBus: the rings of its channels, the SynIC's pages, the hypercall page. A letter stands for its
    whole piece; the list below has the addresses.

    \b
    pyvmm map
    pyvmm map web --svg web.svg
    pyvmm map web --json | jq '.totals'
    pyvmm balloon 256M -w && pyvmm map
    """
    from pyvmm.analysis import page_map

    with connect(find(given, name, socket)) as client:
        found = page_map.read_map(client.execute("x-query-map"))
    if as_json:
        print_json(found)
        return
    if svg is not None:
        try:
            svg.write_text(page_map.svg(found), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--svg {svg}: {error.strerror}") from error
        echo(svg)
        return
    columns = width or (shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH)

    def paint(owner: str, text: str) -> str:
        return f"\x1b[{page_map.look(owner).colour}m{text}\x1b[0m"

    for line in page_map.lines(found, columns, paint):
        painted(line)
