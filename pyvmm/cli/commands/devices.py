"""`pyvmm devices`: lists the VMBus devices of a machine, with the state and traffic of each channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyvmm.cli.output import echo, print_json, table
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.vmbus.names import kind_of


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with ids and every counter.")
def devices(given: str | None, name: str | None, socket: Path | None, as_json: bool) -> None:
    """List the devices on a machine's VMBus and the state of their channels.

    ID is what the monitor's `device_del` takes: a path where a device has no id. PACKETS and SIGNALS are from the
    guest / to it; RINGS is how full its rings are, same order; KIND is what `lsvmbus` calls it in a guest. A device
    that stays `offered` has no driver in the guest.

    \b
    pyvmm devices
    pyvmm devices web --json
    """
    with connect(find(given, name, socket)) as client:
        rows: list[dict[str, Any]] = client.execute("x-query-vmbus")
    if as_json:
        print_json(rows)
    elif not rows:
        echo("no VMBus devices")
    else:
        heads = ("CHANNEL", "DEVICE", "ID", "STATE", "PACKETS", "SIGNALS", "RINGS", "KIND", "")
        table(heads, [_row(row) for row in rows])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    trouble = []
    if row.get("broken"):
        trouble.append(f"broken: {row['broken']}")
    if row.get("refused"):
        trouble.append(f"{row['refused']} refused")
    if row.get("queued"):
        trouble.append(f"{row['queued']} waiting to be sent")
    rings = ""
    if "ring-in-used" in row:
        rings = f"{_percent(row, 'ring-in')} / {_percent(row, 'ring-out')}"
    return (
        f"#{row.get('relid', '?')}",
        str(row.get("name", "?")) + (f" ({row['sub-channel']})" if row.get("sub-channel") else ""),
        str(row.get("id") or row.get("path", "")),
        str(row.get("state", "?")),
        _both(row, "packets"),
        _both(row, "signals"),
        rings,
        kind_of(str(row.get("type", "")), str(row.get("name", ""))),
        ", ".join(trouble),
    )


def _both(row: dict[str, Any], what: str) -> str:
    return f"{row[f'{what}-in']} / {row.get(f'{what}-out', 0)}" if f"{what}-in" in row else ""


def _percent(row: dict[str, Any], ring: str) -> str:
    used, size = row.get(f"{ring}-used", 0), row.get(ring) or 1
    return f"{100 * used / size:.0f}%"
