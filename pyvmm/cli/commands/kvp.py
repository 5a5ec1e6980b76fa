"""`pyvmm kvp`: shows and sets the values that a guest and its host exchange."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli import output
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.qapi import CardAddresses, KvpInfo

SCRIPT_SECONDS = 45.0
"""Time limit of setting addresses: Linux gives its daemon 30 s."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a value in the guest. Repeatable.")
@click.option("--delete", "keys", multiple=True, metavar="KEY", help="Delete a value that was set. Repeatable.")
@click.option("--card", metavar="CARD", help="Show this network card's addresses instead: netvsc, netvsc1 ...")
@click.option(
    "--set-card",
    "card_words",
    metavar="CARD=dhcp|ADDRESS/PREFIX,...",
    help="Set its addresses. Also gateway=ADDRESS, dns=ADDRESS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kvp(
    given: str | None,
    name: str | None,
    socket: Path | None,
    pairs: tuple[str, ...],
    keys: tuple[str, ...],
    card: str | None,
    card_words: str | None,
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
    pyvmm kvp web --card netvsc
    pyvmm kvp web --set-card netvsc=10.0.2.20/24,gateway=10.0.2.2,dns=10.0.2.3

    \b
    The daemon sets addresses by a script of the distribution, hv_set_ifconfig, which knows that system's own network
    configuration.
    """
    split = [pair.partition("=") for pair in pairs]
    for key, equals, _ in split:
        if not key or not equals:
            raise ConfigError(f"--set {key[:40]!r}: give KEY=VALUE")
    wanted = None if card_words is None else _card_arguments(card_words)
    with connect(find(given, name, socket)) as client:
        if wanted is not None:
            client.timeout = SCRIPT_SECONDS
            client.execute("x-kvp-set-addresses", wanted)
        if card is not None or wanted is not None:
            if card is not None:
                _show_card(client.execute("x-kvp-addresses", {"card": card}), as_json)
            return
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


def _card_arguments(words: str) -> dict[str, Any]:
    """Return the arguments of x-kvp-set-addresses. Raises ConfigError."""
    card, equals, rest = words.partition("=")
    found: dict[str, Any] = {"card": card, "dhcp": False, "addresses": [], "gateways": [], "dns": []}
    for word in rest.split(","):
        name, is_named, value = word.partition("=")
        if is_named and name in ("gateway", "dns") and value:
            found["gateways" if name == "gateway" else name].append(value)
        elif word == "dhcp":
            found["dhcp"] = True
        elif word and not is_named:
            found["addresses"].append(word)
        else:
            equals = ""
    if not card or not equals:
        raise ConfigError(
            f"--set-card {words[:60]!r}: give CARD=dhcp, or CARD=ADDRESS/PREFIX,gateway=ADDRESS,dns=ADDRESS"
        )
    return found


def _show_card(found: CardAddresses, as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    output.echo(f"{found['card']}{' by DHCP' if found['dhcp'] else ''}", bold=True)
    kinds = (("addresses", found["addresses"]), ("gateways", found["gateways"]), ("dns", found["dns"]))
    output.fields([(name, " ".join(values)) for name, values in kinds if values])


def _refused(info: KvpInfo, key: str, whose: str) -> bool:
    return whose == "host" and key in info["refused"]


def _note(client: Client) -> None:
    if not client.execute("x-query-kvp")["ready"]:
        output.echo("pyvmm: kept until the guest's hv_kvp_daemon runs", err=True)
