"""`pyvmm balloon`: shows a guest's memory size, or sets its target."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, print_json, progress
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, connect, find, machine_options
from pyvmm.client.replies import memory_text
from pyvmm.errors import ConfigError
from pyvmm.launch import exit_status
from pyvmm.sizes import format_size, is_size, parse_size

if TYPE_CHECKING:
    from pyvmm.client.qmp import Client

PAGE = 4096


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the first word with names of machines; a SIZE follows."""
    return [] if ctx.params.get("words") else complete_machine(ctx, param, incomplete)


@click.command()
@click.argument("words", nargs=-1, metavar="[NAME] [SIZE]", shell_complete=complete_name)
@machine_options
@click.option("--wait", "-w", is_flag=True, help="Wait until the guest has reached SIZE or stopped short of it.")
@click.option("--timeout", type=Seconds(min=0), default=60.0, show_default=True, help="Time limit of --wait.")
@click.option("--auto", is_flag=True, help="Resume automatic sizing, which a SIZE suspends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def balloon(
    words: tuple[str, ...],
    name: str | None,
    socket: Path | None,
    wait: bool,
    timeout: float,
    auto: bool,
    as_json: bool,
) -> int:
    """Show a guest's memory size, or set its target to SIZE.

    A plain number is MiB; k, M, G and T work, fractions too. NAME is needed only if several machines run.

    \b
    pyvmm balloon                 how much the guest has
    pyvmm balloon 256M            let it shrink (or grow) to 256 MiB
    pyvmm balloon web 1.5G -w     the machine called web, and wait for it
    pyvmm balloon web --auto      size it by its demand again (`run -m SIZE,min=...`)

    \b
    With --wait: status 0 if SIZE was reached, 1 if the guest stays elsewhere, 124 after --timeout.

    If a guest stops above SIZE, the request is repeated: once before --wait ends, and three times in the 15 s after
    it, because memory that was just freed is not always available at once. `pyvmm status` shows whether that goes on.
    """
    given, size = _split(words)
    if auto and size is not None:
        raise click.UsageError("SIZE and --auto exclude each other")
    if wait and size is None:
        raise click.UsageError("--wait needs a SIZE")
    if size is not None and size < PAGE:
        raise ConfigError(f"{format_size(size)} is too small for a guest: the minimum is a page, 4 KiB")
    entry = find(given, name, socket)
    with connect(entry) as client:
        if auto:
            client.execute("x-autosize", {"enable": True})
        if size is None:
            return _show(client, as_json)
        reply = client.execute("x-balloon", {"value": size})
        if wait:
            return _wait(client, size, reply, timeout, as_json)
    if as_json:
        print_json(reply)
    else:
        echo(f"{entry.name}: {_promise(size, reply)}")
    return 0


def _split(words: tuple[str, ...]) -> tuple[str | None, int | None]:
    """Return a machine's name and a size. A size is not a valid name, so a single word is unambiguous."""
    match words:
        case ():
            return None, None
        case (word,) if is_size(word) or word[:1] in "-.0123456789":
            return None, parse_size(word)
        case (word,):
            return word, None
        case (word, size):
            return word, parse_size(size)
        case _:
            raise click.UsageError("at most a NAME and a SIZE")


def _promise(size: int, reply: dict[str, Any]) -> str:
    reach, reason = reply.get("will-reach", size), reply.get("reason")
    text = f"target {format_size(size)}"
    if reach != size:
        text += f", will reach {format_size(reach)}"
    return f"{text}: {reason}" if reason else text


def _show(client: Client, as_json: bool) -> int:
    actual = client.execute("query-balloon")["actual"]
    about = client.execute("x-status")
    memory, state = about.get("memory") or {}, about.get("balloon") or {}
    if as_json:
        print_json({"actual": actual, "memory": memory, "balloon": state})
    else:
        echo(f"{about.get('name') or 'guest'}: {memory_text(memory | {'actual': actual}, state)}")
    return 0


def _wait(client: Client, size: int, reply: dict[str, Any], timeout: float, as_json: bool) -> int:
    from pyvmm.client.qmp import TimedOut
    from pyvmm.client.resize import EVENTS, ResizeProgress

    client.events.clear()  # queued before the target was set
    deadline = time.monotonic() + timeout
    resize = ResizeProgress(size, reply, client.execute("query-balloon")["actual"])
    bar = _Bar(resize.actual, resize.goal)
    try:
        while not resize.result:
            resize.update(*client.wait_event(EVENTS, max(0.0, deadline - time.monotonic())))
            bar.show(resize.actual)
        result = resize.result
    except TimedOut:
        result = "timeout"
    bar.end()
    if as_json:
        print_json(reply | {"actual": resize.actual, "result": result, "asked-again": resize.asked_again})
    elif resize.actual == resize.size:
        echo(f"reached {format_size(resize.actual)}")
    elif result == "timeout":
        echo(f"at {format_size(resize.actual)} after {timeout:g} s, target {format_size(resize.size)}")
    else:
        text = f"stays at {format_size(resize.actual)}, target {format_size(resize.size)}: {result}"
        echo(text + ("; the request is repeated for some seconds" if resize.asked_again else ""))
    if resize.actual == resize.size:
        return 0
    return exit_status.TIMEOUT if result == "timeout" else exit_status.ERROR


class _Bar:
    """Draws a progress bar on stderr, if that is a terminal."""

    WIDTH = 30

    def __init__(self, begin: int, goal: int) -> None:
        self._begin, self._goal = begin, goal

    def show(self, actual: int) -> None:
        way = abs(self._goal - self._begin) or 1
        part = min(1.0, abs(actual - self._begin) / way)
        bar = "#" * int(part * self.WIDTH)
        progress(f"[{bar:<{self.WIDTH}}] {format_size(actual):>10}")

    def end(self) -> None:
        progress("")
