"""`pyvmm status`: shows the state of one machine."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli import output
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.client.replies import access_text, memory_text, net_text
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.registry import Entry

UNHANDLED_SHOWN = 3
"""Unhandled accesses that are shown, the most frequent first."""

ANSWER_TIMEOUT = 10.0
"""Seconds that `status` waits for the machine's answer."""


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option("--history", type=click.IntRange(min=1), metavar="N", help="Show the guest's last N memory reports.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every counter.")
def status(given: str | None, name: str | None, socket: Path | None, history: int | None, as_json: bool) -> None:
    """Show a running machine: its memory, its balloon, its VMBus channels, its counters.

    A machine that is still starting (its image is being built, or the emulated host made or booted) is shown as such.

    \b
    pyvmm status
    pyvmm status web --json
    pyvmm status --history 60     memory pressure over the last minute
    """
    if history is not None:
        from pyvmm.cli.history import show_history

        with connect(find(given, name, socket)) as client:
            show_history(client, history, as_json)
        return
    entry = find(given, name, socket)
    about = _describe(entry)
    if as_json:
        output.print_json(about)
        return
    output.echo(_head(about), bold=True)
    output.fields(_fields(about))


def _describe(entry: Entry) -> dict[str, Any]:
    """Return the machine's x-status, or the registry's data while the machine is starting."""
    from pyvmm.client.qmp import Starting

    try:
        with connect(entry, ANSWER_TIMEOUT, start_timeout=0) as client:
            about: dict[str, Any] = client.execute("x-status")
            return about
    except Starting:
        return {
            "name": entry.name,
            "pid": entry.pid,
            "status": "starting",
            "uptime": round(time.time() - entry.started, 1),
            "command": shlex.join(entry.argv),
        }


def _head(about: dict[str, Any]) -> str:
    """`web: running for 5 min 2 s`. The uptime counts from the machine's start, not from its last change of state."""
    state = str(about.get("status", "unknown"))
    if "uptime" in about:
        up = output.duration(about["uptime"])
        state += f" for {up}" if state in ("running", "starting") else f", started {up} ago"
    return f"{about.get('name') or 'machine'}: {state}"


def _fields(about: dict[str, Any]) -> list[tuple[str, str]]:
    known = {
        "name",
        "nets",
        "status",
        "uptime",
        "memory",
        "balloon",
        "vmbus",
        "exits",
        "resets",
        "notices",
        "panics",
        "guest",
    }
    pairs = [(key, str(each)) for key, each in about.items() if key not in known and isinstance(each, (str, int))]
    if about.get("sandbox"):
        pairs.append(("sandbox", _sandbox_text(about["sandbox"])))
    if about.get("resets"):
        pairs.append(("resets", str(about["resets"])))
    if about.get("panics"):
        pairs.append(("panics", str(about["panics"])))
    for number, notice in enumerate(about.get("notices") or []):
        pairs.append(("notice" if number == 0 else "", str(notice)))
    if about.get("status") == "starting":
        return pairs
    pairs.append(("memory", memory_text(about.get("memory") or {}, about.get("balloon") or {})))
    pairs.append(("balloon", _balloon_text(about.get("balloon"))))
    if about.get("guest"):
        pairs.append(("guest", _guest_text(about["guest"])))
    for number, channel in enumerate(about.get("vmbus") or []):
        traffic = ""
        if "packets-in" in channel:
            traffic = f", {channel['packets-in']} packets in, {channel.get('packets-out', 0)} out"
        text = f"#{channel.get('relid', '?')} {channel.get('name', '?')}: {channel.get('state', '?')}{traffic}"
        pairs.append(("vmbus" if number == 0 else "", text))
    for number, net in enumerate(about.get("nets") or []):
        pairs.append(("net" if number == 0 else "", net_text(net)))
    exits = {key: sum(counts.values()) for key, counts in (about.get("exits") or {}).items()}
    pairs.append(("event loop", _loop_text(about.get("loop") or {})))
    pairs.append(("exits", ", ".join(f"{key} {count}" for key, count in exits.items())))
    pairs.append(("unhandled", _unhandled_text(about.get("unhandled") or {})))
    return pairs


def _guest_text(guest: dict[str, Any]) -> str:
    """`web.example, Debian GNU/Linux 12: 10.0.2.15, fec0::1`, as the guest tells it."""
    text = ", ".join(str(guest[key]) for key in ("name", "os") if guest.get(key))
    addresses = ", ".join(map(str, guest.get("addresses") or []))
    return f"{text}: {addresses}" if addresses else text


def _unhandled_text(unhandled: dict[str, Any]) -> str:
    """`port write 0x80 (POST code) 12 times, msr read 0x8b once, and 3 others`; empty if there were none."""
    rows = unhandled.get("accesses") or []
    parts = [
        f"{access_text(str(row['kind']), row['number'], str(row['name']))} "
        + ("once" if row["count"] == 1 else f"{row['count']} times")
        for row in rows[:UNHANDLED_SHOWN]
    ]
    if len(rows) > UNHANDLED_SHOWN:
        parts.append(f"and {len(rows) - UNHANDLED_SHOWN} others (--json)")
    return ", ".join(parts)


def _loop_text(loop: dict[str, Any]) -> str:
    """`1234 turns, the longest 45 ms; stalled once in reset (machine.py:300)`."""
    text = f"{loop.get('turns', 0)} turns, the longest {loop.get('longest-turn', 0) * 1000:.0f} ms"
    if stalls := loop.get("stalls"):
        often = "once" if stalls == 1 else f"{stalls} times, last"
        text += f"; stalled {often} in {loop.get('last-stall')}"
    return text


def _sandbox_text(sandbox: dict[str, Any]) -> str:
    """`Landlock (ABI 7), seccomp, no new privileges, capabilities: none`, or `off`."""
    if sandbox.get("mode") == "off":
        return "off"
    parts = [f"Landlock (ABI {sandbox['landlock-abi']})"] if sandbox.get("landlock-abi") else []
    parts += [key.replace("-", " ") for key in ("seccomp", "no-new-privileges") if sandbox.get(key)]
    parts.append(f"capabilities: {sandbox.get('capabilities', 'unknown')}")
    missing = sandbox.get("missing")
    return ", ".join(parts) + (f"; missing: {', '.join(missing)}" if missing else "")


def _balloon_text(balloon: dict[str, Any] | None) -> str:
    if not balloon:
        return "no hv-balloon device"
    parts = [output.balloon_state(str(balloon.get("state", "")))]
    if balloon.get("version"):
        parts.append(f"protocol {balloon['version']}")
    for key, word in (("available", "available in the guest"), ("committed", "committed")):
        if balloon.get(key) is not None:
            parts.append(f"{format_size(balloon[key])} {word}")
    if balloon.get("last-result"):
        parts.append(f"last resize: {balloon['last-result']}")
    return ", ".join(part for part in parts if part)
