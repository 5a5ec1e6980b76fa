"""`pyvmm kvp`: shows and sets the values that a guest and its host exchange."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvmm.cli import output
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.qapi import KvpInfo


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a value in the guest. Repeatable.")
@click.option("--delete", "keys", multiple=True, metavar="KEY", help="Delete a value that was set. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kvp(
    given: str | None,
    name: str | None,
    socket: Path | None,
    pairs: tuple[str, ...],
    keys: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what a guest tells of itself and what its programs tell, and set values that they can read.

    The machine needs the device kvp, and the guest hv_kvp_daemon: `pyvmm run --device kvp` brings it with our images.
    The guest's programs read our values in /var/lib/hyperv/.kvp_pool_0, and write theirs to .kvp_pool_1. Values are
    kept here for a guest whose daemon does not run yet.

    \b
    pyvmm kvp
    pyvmm kvp web --set color=blue --set size=7
    pyvmm kvp web --delete color
    """
    split = [pair.partition("=") for pair in pairs]
    for key, equals, _ in split:
        if not key or not equals:
            raise ConfigError(f"--set {key[:40]!r}: give KEY=VALUE")
    with connect(find(given, name, socket)) as client:
        for key in keys:
            client.execute("x-kvp-set", {"key": key})
        for key, _, value in split:
            client.execute("x-kvp-set", {"key": key, "value": value})
        if (pairs or keys) and not as_json:
            _note(client)
            return
        info: KvpInfo = client.execute("x-query-kvp")
    if as_json:
        output.print_json(info)
        return
    pools = (("guest", info["auto"]), ("guest's programs", info["guest"]), ("host", info["external"]))
    rows = [(key, value, whose) for whose, values in pools for key, value in values.items()]
    if not info["ready"]:
        output.echo("pyvmm: the guest's hv_kvp_daemon does not answer (yet)", err=True)
    rows = [
        (key, value, f"refused, {info['refused'][key]}" if _refused(info, key, whose) else whose)
        for key, value, whose in rows
    ]
    if rows:
        output.table(("KEY", "VALUE", "SET BY"), rows)


def _refused(info: KvpInfo, key: str, whose: str) -> bool:
    return whose == "host" and key in info["refused"]


def _note(client: Client) -> None:
    if not client.execute("x-query-kvp")["ready"]:
        output.echo("pyvmm: kept until the guest's hv_kvp_daemon runs", err=True)
