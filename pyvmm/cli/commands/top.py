"""`pyvmm top` itself: finds machines, starts watchers, draws, obeys keys."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.output import echo, print_json
from pyvmm.cli.seconds import Seconds
from pyvmm.cli.target import complete_machine, find
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.cli.top.view import Screen
    from pyvmm.cli.top.watcher import Watcher
    from pyvmm.client.registry import Entry

MIB = 1 << 20
FRAME = 0.2
"""Seconds between two pictures."""

WIDTH = 110
"""Columns of a picture that no terminal gave a size."""

NOTE = 5.0
"""Seconds that an answer to a key is shown: it may take the place of the keys."""

LINGER = 60.0
"""Seconds that a machine which ended stays to be seen, unless another takes its name."""

STEPS = 16
"""Presses of a key from all of a machine's memory to nothing."""


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_machine)
@click.option("--interval", "-i", type=Seconds(min=0.1), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--once", is_flag=True, help="Print one picture, with the rates of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with --once.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write such a picture to a file instead.")
@click.option("--width", type=click.IntRange(min=60), help="Columns of the picture. Default: the terminal's.")
def top(
    names: tuple[str, ...], interval: float, once: bool, as_json: bool, svg: Path | None, width: int | None
) -> None:
    """Watch the running machines: exits by kind, memory, pressure, VMBus channels, trace events.

    All of this user's machines, or those named; a named machine stays listed after its end, until a new one takes
    the name. Keys: up and down choose one, + and - give it more or less memory, ? explains, q ends. Narrow and low
    terminals get less: 110 columns and 30 lines show all there is.

    \b
    pyvmm top
    pyvmm top web db -i 0.5
    pyvmm top --once | head -5
    pyvmm top --once --json | jq '.[] | {name, "exit-rate"}'
    """
    if as_json and (not once or svg is not None):
        raise click.UsageError("--json goes with --once")
    board = Board(names, interval)
    try:
        if as_json:
            _settle(board, interval)
            print_json(board.figures())
        elif once or svg is not None:
            _once(board, interval, svg, width)
        elif not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError("`pyvmm top` needs a terminal; --once prints one picture anywhere")
        else:
            _live(board, width)
    finally:
        board.close()


class Board:
    """The watchers of all machines that run, or of those named, and which is chosen."""

    def __init__(self, names: tuple[str, ...], interval: float) -> None:
        self.chosen = 0
        self.help = False
        self._note = ""
        self._noted = 0.0
        self._names = names
        self._interval = interval
        self._watchers: dict[tuple[str, int, float], Watcher] = {}  # by name, process and start
        self._wanted: dict[str, int] = {}  # targets asked for by keys, by machine
        self._refreshed = 0.0
        self.refresh_machines()

    def _entries(self) -> list[Entry]:
        from pyvmm.client.registry import running

        if not self._names:
            return running()
        if not self._watchers:
            return [find(name, None, None) for name in self._names]
        now = {entry.name: entry for entry in running()}
        watched = [each.entry for each in self._watchers.values()]
        return [now.get(entry.name, entry) if entry.pid else entry for entry in watched]

    def refresh_machines(self) -> None:
        """Follow the machines that run now."""
        from pyvmm.cli.top.watcher import Watcher

        entries = {(entry.name, entry.pid, entry.started): entry for entry in self._entries()}
        names = {entry.name for entry in entries.values()}
        for key in [key for key in self._watchers if key not in entries]:
            if key[0] in names or not _lingers(self._watchers[key]):
                self._watchers.pop(key).stop()
        for key, entry in entries.items():
            if key not in self._watchers or _is_back(self._watchers[key]):
                self._watchers[key] = Watcher(entry, self._interval)
                self._watchers[key].start()
                self._wanted.pop(entry.name, None)
        if self._names:  # each in its place, whoever began anew
            self._watchers = {key: self._watchers[key] for key in entries}
        self.chosen = max(0, min(self.chosen, len(self._watchers) - 1))
        self._refreshed = time.monotonic()

    def refresh_machines_if_due(self) -> None:
        """Refresh them if the last time was more than a second ago."""
        if time.monotonic() - self._refreshed > 1.0:
            self.refresh_machines()

    @property
    def watchers(self) -> list[Watcher]:
        return list(self._watchers.values())

    def key(self, key: str) -> bool:
        """Obey a key; False to end."""
        match key:
            case "q":
                return False
            case "up":
                self.chosen = max(0, self.chosen - 1)
            case "down":
                self.chosen = max(0, min(len(self._watchers) - 1, self.chosen + 1))
            case "?":
                self.help = not self.help
            case "+" | "-":
                self._resize(1 if key == "+" else -1)
        return True

    def _resize(self, direction: int) -> None:
        if not self._watchers:
            return
        watcher = self.watchers[self.chosen]
        name = watcher.entry.name
        memory = None if watcher.sample is None or watcher.ended else watcher.sample.memory
        if memory is None or memory.actual is None or not memory.boot:
            self._say(f"{name} has no balloon")
            return
        step = max(16 * MIB, memory.boot // STEPS)
        now = self._wanted.get(name, memory.target or memory.actual)
        wanted = max(step, (now // step + direction) * step)
        self._wanted[name] = wanted
        self._say(f"{name}: asked for {wanted // MIB} MiB")
        watcher.resize(wanted)

    def _say(self, note: str) -> None:
        self._note, self._noted = note, time.monotonic()

    @property
    def note(self) -> str:
        """The answer to the last key, for a while."""
        return self._note if time.monotonic() - self._noted < NOTE else ""

    def picture(self, height: int | None = None) -> Screen:
        from pyvmm.cli.top.view import Row, Screen

        rows = [
            Row(each.entry.name, each.sample, each.error, list(each.lines), each.ended is not None, each.last_words)
            for each in self.watchers
        ]
        return Screen(rows, self.chosen, self.note, self.help, height)

    def figures(self) -> list[dict[str, Any]]:
        """What the picture shows of each machine, for programs."""
        from pyvmm.cli.top.samples import as_json

        return [
            {"name": each.entry.name, "error": each.error, "trace": [text for _, text in each.lines]}
            | ({} if each.sample is None else as_json(each.sample))
            for each in self.watchers
        ]

    def close(self) -> None:
        for watcher in self._watchers.values():
            watcher.stop()


def _lingers(watcher: Watcher) -> bool:
    """Whether a machine that is not registered any more is to be seen still."""
    if watcher.ended is None:
        return watcher.sample is not None  # its watcher learns of the end in a moment
    return time.monotonic() - watcher.ended < LINGER


def _is_back(watcher: Watcher) -> bool:
    """Whether another machine listens at the socket of one that ended; who is known by name has another process."""
    if watcher.ended is None or watcher.entry.pid:
        return False
    from pyvmm.unix_socket import is_listening

    return is_listening(watcher.entry.socket)


def _live(board: Board, width: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    from pyvmm.cli.top.keys import read_keys
    from pyvmm.foreground import Terminal, acquired, key_by_key, stop_by

    console = Console(width=width)
    terminal = Terminal(sys.stdin.fileno(), key_by_key)
    full = False

    def stop(number: int, frame: object = None) -> None:
        """Leave the shell its own screen while we are stopped."""
        if full:
            console.set_alt_screen(False)
            console.show_cursor(True)
        stop_by(number)
        if full:
            console.set_alt_screen(True)
            console.show_cursor(False)

    before = signal.signal(signal.SIGTSTP, stop)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTSTP, before)
        stack.enter_context(acquired(terminal))
        while not terminal.acquire():  # as every program for a whole screen that is started in the background
            stop(signal.SIGTTIN)
            time.sleep(FRAME)
        full = True
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        while True:
            while not terminal.acquire():
                stop(signal.SIGTTIN)
                time.sleep(FRAME)
            live.update(board.picture(console.height), refresh=True)
            for key in read_keys(terminal, FRAME):
                if not board.key(key):
                    return
            board.refresh_machines_if_due()


def _once(board: Board, interval: float, svg: Path | None, width: int | None) -> None:
    from rich.console import Console

    _settle(board, interval)
    if svg is None:
        Console(width=width, soft_wrap=False).print(board.picture())
        return
    with open(os.devnull, "w") as nowhere:
        console = Console(
            width=width or WIDTH, record=True, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(board.picture())
        svg.write_text(self_contained(console.export_svg(title="pyvmm top")), encoding="utf-8")
    echo(svg)


def _settle(board: Board, interval: float) -> None:
    """Wait for two samples of each machine that answers, if there is any."""
    if not board.watchers:
        return
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and any(each.sample is None and not each.error for each in board.watchers):
        time.sleep(0.02)
    time.sleep(interval + 0.3)


def self_contained(svg: str) -> str:
    """A picture of rich's without the fonts it would fetch."""
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    return re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
