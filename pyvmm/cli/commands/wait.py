"""`pyvmm wait`: waits for a machine's end, an event of its monitor or an open channel."""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, print_json
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect, find, find_soon, machine_options
from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.guest_text import one_line
from pyvmm.launch import exit_status
from pyvmm.launch.where import print_message

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client
    from pyvmm.client.registry import Entry

PROMPT = 1.0
"""Seconds that a machine may take to start before a message says that it is still starting."""

POLL = 0.2
"""Poll interval, in seconds, while waiting for a channel to open."""

ANSWER_TIMEOUT = 2.0
"""Timeout, in seconds, for an answer to completion, and for the events that are left after a disconnect."""


def complete_event(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete names of the monitor's events."""
    from pyvmm.qapi import EVENTS

    return [name for name in EVENTS if name.startswith(incomplete.upper())]


def complete_channel(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete names of the machine's VMBus devices."""
    given = next(iter(ctx.args), None)  # not parsed yet: click stopped at the option without its value
    try:
        entry = find(given, ctx.params.get("name"), ctx.params.get("socket"))
        with connect(entry, ANSWER_TIMEOUT, start_timeout=0) as client:
            names = [str(each.get("name")) for each in client.execute("x-query-vmbus")]
    except (PyvmmError, click.UsageError):  # no machine runs, or the choice is ambiguous
        return []
    return [name for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("given", required=False, metavar="[NAME]", shell_complete=complete_machine)
@machine_options
@click.option(
    "--event",
    metavar="NAME",
    shell_complete=complete_event,
    help="For this QMP event (BALLOON_CHANGE, RESET, ...) instead of the end.",
)
@click.option(
    "--channel",
    metavar="NAME",
    shell_complete=complete_channel,
    help="Until the guest's driver has opened this device: hv-balloon.",
)
@click.option("--timeout", type=Seconds(min=0), help="Give up after SECONDS, with status 124.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def wait(
    given: str | None,
    name: str | None,
    socket: Path | None,
    event: str | None,
    channel: str | None,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Wait until a machine ends, or something happens in it.

    \b
    pyvmm wait                                   until it ends; print how it ended
    pyvmm wait web --channel hv-balloon          until it can be resized
    pyvmm wait web --event BALLOON_CHANGE --json
    pyvmm wait web --timeout 60 || pyvmm kill web

    \b
    A machine that is still starting is waited for as well, however long its image takes to build. A guest's
    panic message is printed on stderr.

    \b
    Status: 0 success, 124 --timeout expired, 255 the guest panicked, 1 the machine ended while something
    else was awaited, or before it had started.
    """
    if event is not None and channel is not None:
        raise click.UsageError("wait for an --event or for a --channel, not both")
    _check_event(event)
    entry = find_soon(given, name, socket)
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    found = _await(entry, event, channel, deadline)
    if as_json:
        print_json({"name": entry.name} | found)
    else:
        echo(one_line(f"{entry.name}: {_words(found, event, channel, timeout)}"))
    return _status(found, ends=event is None and channel is None)


def _check_event(event: str | None) -> None:
    """Raise UsageError for an unknown event name: the wait would never end."""
    from pyvmm.qapi import EVENTS

    if event is not None and event not in EVENTS:
        near = difflib.get_close_matches(event.upper(), EVENTS, 1)
        raise click.UsageError(f"there is no event {event!r}; {f'{near[0]}?' if near else ', '.join(sorted(EVENTS))}")


def _await(entry: Entry, event: str | None, channel: str | None, deadline: float) -> dict[str, Any]:
    """Wait for the event, channel or end, and return the result. Reconnects to a machine that answers slowly."""
    from pyvmm.client.qmp import Disconnected, Starting, TimedOut

    connected = starting = False
    while True:
        try:
            with connect(entry, start_timeout=min(PROMPT, deadline - time.monotonic())) as client:
                connected = True
                if channel is not None:
                    return _wait_channel(client, channel, deadline)
                return _wait_event(client, event, deadline)
        except TimedOut:
            if time.monotonic() >= deadline:
                return {"result": "timeout"}
        except Starting:
            if time.monotonic() >= deadline:
                return {"result": "timeout", "reason": "starting"}
            if not starting:
                print_message(f"{entry.name} is starting")
            starting = True
        except Disconnected as error:
            if starting and not connected:
                raise Disconnected(f"{entry.name} ended before it had started") from error
            if not connected:
                raise
            return {"result": "ended"}


def _words(found: dict[str, Any], event: str | None, channel: str | None, timeout: float | None) -> str:
    match found["result"]:
        case "timeout":
            what = f"no {event}" if event else f"{channel} is not open" if channel else "still running"
            if found.get("reason") == "starting":
                what = "still starting"
            return f"{what} after {timeout:g} s"
        case "event":
            return " ".join([found["event"], *(f"{key}={value}" for key, value in found["data"].items())])
        case "open":
            return f"{channel} is open"
        case result:
            return f"{result} ({found['reason']})" if found.get("reason") else result


def _status(found: dict[str, Any], *, ends: bool) -> int:
    match found["result"]:
        case "timeout":
            return exit_status.TIMEOUT
        case "panicked":
            return exit_status.GUEST_DIED
        case "ended":
            return 0 if ends else exit_status.ERROR
        case _:
            return 0


def _wait_event(client: Client, wanted: str | None, deadline: float) -> dict[str, Any]:
    """Wait for the event or the machine's end, and return which came. Raises TimedOut."""
    from pyvmm.client.qmp import Disconnected

    ending: dict[str, Any] = {"result": "ended"}
    names = {"SHUTDOWN", "GUEST_PANICKED", "RESET", *([wanted] if wanted else [])}
    while True:
        try:
            name, data = client.wait_event(names, min(3600.0, max(0.0, deadline - time.monotonic())))
        except Disconnected:
            return ending
        except HostError:
            if time.monotonic() >= deadline:
                raise
            continue
        if name == wanted:
            return {"result": "event", "event": name, "data": data}
        _record_end(ending, name, data)


def _record_end(ending: dict[str, Any], name: str, data: dict[str, Any]) -> None:
    """Update `ending`, how the machine ended, from an event; a panic is printed at once."""
    if name == "GUEST_PANICKED":
        from pyvmm.hyperv.crash import panic_line

        ending.update(result="panicked", data=data)
        ending.pop("reason", None)
        print_message(f"guest panicked: {panic_line(str(data.get('x-text', '')))}")
    elif name == "RESET":  # a crash kernel has finished, or the machine resets after a panic
        ending.clear()
        ending["result"] = "ended"
    elif name == "SHUTDOWN" and ending["result"] == "ended":
        ending["reason"] = data.get("reason", "")


def _wait_channel(client: Client, name: str, deadline: float) -> dict[str, Any]:
    """Wait until the channel is open or the machine ends, and return which came. Raises TimedOut; ConfigError if
    there is no such device.
    """
    from pyvmm.client.qmp import Disconnected, TimedOut

    while True:
        try:
            channels = client.execute("x-query-vmbus")
        except Disconnected:
            return _wait_event(
                client, None, time.monotonic() + ANSWER_TIMEOUT
            )  # events received before the disconnect
        rows = [each for each in channels if each.get("name") == name]
        if channels and not rows:
            known = ", ".join(str(each.get("name")) for each in channels)
            raise ConfigError(f"the machine has no VMBus device named {name!r}: it has {known}")
        if any(each.get("state") == "open" for each in rows):
            return {"result": "open", "channel": name}
        if time.monotonic() >= deadline:
            raise TimedOut("not open")
        time.sleep(POLL)
