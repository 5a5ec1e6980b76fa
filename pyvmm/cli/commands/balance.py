"""`pyvmm balance`: shares a memory budget between guests, by their demand (pressure reports)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli import output
from pyvmm.cli.guest_options import SizeType
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect
from pyvmm.errors import ConfigError, HostError
from pyvmm.sizes import format_size

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.client.registry import Entry
    from pyvmm.machine.budget import Member

INTERVAL = 5.0
ANSWER_LIMIT = 5.0
"""Timeout, in seconds, of a machine's answer; a slower machine is skipped in this round."""


@dataclass(slots=True)
class Guest:
    """A machine in this round: its monitor connection and its share of the budget."""

    client: Client
    member: Member
    pressure: int | None


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_machine)
@click.option("--budget", type=SizeType(), required=True, help="Memory of all guests together.")
@click.option(
    "--least",
    type=SizeType(),
    default="128M",
    show_default=True,
    help="Minimum of a guest without a min= of its own.",
)
@click.option("--buffer", type=click.IntRange(1, 2000), default=20, show_default=True, help="Percent of the demand.")
@click.option(
    "--interval",
    type=Seconds(min=0.1),
    default=INTERVAL,
    show_default=True,
    help="Seconds between two rounds.",
)
@click.option("--once", is_flag=True, help="Run one round, then exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line per round.")
def balance(
    names: tuple[str, ...], budget: int, least: int, buffer: int, interval: float, once: bool, as_json: bool
) -> int:
    """Keep guests within a budget of memory, and give it to those that need it.

    NAMEs are running machines; without any, all of this user. Each gets what its programs demand and a buffer on top
    if there is enough. A guest shrinks only if another one needs the memory, and sizes and targets together never
    exceed the budget. The guests' automatic sizing is suspended meanwhile; --once leaves it suspended (`pyvmm balloon
    NAME --auto` resumes it).

    \b
    pyvmm balance --budget 2G
    pyvmm balance --budget 4G web db --interval 2
    pyvmm balance --budget 2G --once --json
    """
    from pyvmm.client import registry
    from pyvmm.process import signals_as_exceptions

    asked = list(dict.fromkeys(names))
    shown: object = None
    held: set[str] = set()
    with signals_as_exceptions():
        try:
            while True:
                entries = [registry.find(name) for name in asked] if asked else registry.running()
                if not entries:
                    raise ConfigError("no VM is running: `pyvmm run` starts one")
                report = _round(entries, budget, least, buffer, held)
                if as_json:
                    output.echo(_line(report))
                elif once or report["actions"] or report["problems"] != shown:
                    _print(report)
                shown = report["problems"]
                if once:
                    return 0
                time.sleep(interval)
        finally:
            if not once:
                _resume_sizing(held)


def _resume_sizing(held: Iterable[str]) -> None:
    """Re-enable automatic sizing on those machines in `held` that still run."""
    from pyvmm.client import registry

    for entry in registry.running():
        if entry.name in held:
            try:
                with connect(entry, ANSWER_LIMIT, start_timeout=0) as client:
                    client.execute("x-autosize", {"enable": True})
            except HostError as error:
                with contextlib.suppress(OSError):  # the terminal may be gone: still serve the other machines
                    output.echo(f"{entry.name}: automatic sizing is still suspended: {error}", err=True)


def _line(report: dict[str, Any]) -> str:
    import json

    return json.dumps(report)


def _round(entries: Sequence[Entry], budget: int, least: int, buffer: int, held: set[str]) -> dict[str, Any]:
    """Query every machine and set the targets that fit the budget now. Returns a report, ready for JSON.

    Adds to `held` each machine whose automatic sizing was enabled: it is disabled, as it could exceed the budget.
    """
    from pyvmm.machine.budget import moves, share

    problems: dict[str, str] = {}
    guests: dict[str, Guest] = {}
    try:
        for entry in entries:
            try:
                client = connect(entry, ANSWER_LIMIT, start_timeout=0)
                try:
                    guests[entry.name] = _query(entry, client, least, buffer, held)
                except BaseException:
                    client.close()
                    raise
            except HostError as error:
                problems[entry.name] = str(error)
        members = [each.member for each in guests.values()]
        minimums = sum(each.limits.minimum for each in members)
        if minimums > budget:
            problems["budget"] = (
                f"{format_size(budget)} is less than the sum of the minimums, {format_size(minimums)}"
            )
        goals = share(budget, members)
        actions = {}
        for name, target in moves(budget, members, goals).items():
            try:
                guests[name].client.execute("balloon", {"value": target})
                actions[name] = target
            except HostError as error:
                problems[name] = str(error)
    finally:
        for each in guests.values():
            each.client.close()
    return {
        "budget": budget,
        "used": sum(each.current for each in members),
        "guests": [
            {
                "name": name,
                "current": each.member.current,
                "demand": each.member.demand,
                "pressure": each.pressure,
                "goal": goals[name],
            }
            for name, each in guests.items()
        ],
        "actions": actions,
        "problems": problems,
    }


def _query(entry: Entry, client: Client, least: int, buffer: int, held: set[str]) -> Guest:
    """Query one machine and disable its automatic sizing. Raises HostError."""
    from pyvmm.machine.autosize import Limits
    from pyvmm.machine.budget import Member

    about = client.execute("x-query-pressure", {"count": 0})
    sizing = about.get("autosize") or {}
    if sizing.get("enabled"):
        held.add(entry.name)  # before the command: a signal may end this process in between
        client.execute("x-autosize", {"enable": False})
    minimum = min(sizing.get("min", least), about["boot"])
    limits = Limits(minimum, max(about["max"], minimum), sizing.get("buffer", buffer))
    target = about["target"]
    resting = (client.execute("x-status").get("balloon") or {}).get("state") == "Idle"
    held_now = about["actual"]  # includes memory that may still be the guest's: both count against the budget
    if resting and target is not None and target > held_now:
        target = None  # growth ended short of it: no longer reserved. (A failed shrink is not retried.)
    member = Member(entry.name, held_now, about["demand"], limits, about["boot"], target)
    return Guest(client, member, about["pressure"])


def _print(report: dict[str, Any]) -> None:
    used, budget = report["used"], report["budget"]
    output.echo(f"{time.strftime('%H:%M:%S')}  {format_size(used)} of {format_size(budget)} in use", bold=True)
    rows = []
    for each in report["guests"]:
        target = report["actions"].get(each["name"])
        if target is not None:
            change = target - each["current"]
            text = f"-> {format_size(target)} ({'+' if change > 0 else '-'}{format_size(abs(change))})"
        elif each["goal"] != each["current"]:
            text = f"waits for {format_size(each['goal'])}"
        else:
            text = ""
        demand = "not reported" if each["demand"] is None else format_size(each["demand"])
        pressure = "" if each["pressure"] is None else f"{each['pressure']}%"
        rows.append((each["name"], format_size(each["current"]), demand, pressure, text))
    if rows:
        output.table(("NAME", "MEMORY", "DEMAND", "PRESSURE", ""), rows)
    for name, text in report["problems"].items():
        output.echo(f"{name}: {text}", err=True)
