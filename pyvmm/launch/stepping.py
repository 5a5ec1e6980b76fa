"""Runs a session step by step, for `pyvmm step`: the prompt, a script, and what both print.

stdin, by a thread of its own --line--> loop --> Stepper.go --stop--> lines on stdout --> the next line is asked for
"""

from __future__ import annotations

import os
import shutil
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyvmm.decode.text import cut
from pyvmm.errors import ConfigError, GuestError
from pyvmm.guest_text import one_line
from pyvmm.launch import exit_status
from pyvmm.launch.attended import report
from pyvmm.launch.consoles import CallbackConsole
from pyvmm.launch.session import Session
from pyvmm.launch.trace_sinks import check_patterns
from pyvmm.step import commands, show
from pyvmm.step.commands import Command
from pyvmm.step.stepper import Stepper, Stopped
from pyvmm.step.waits import waits

if TYPE_CHECKING:
    from pyvmm.machine import MachineConfig

PROMPT: Final = "(step) "
WIDTH: Final = 110
"""Columns of output that is no terminal."""
LINE_LIMIT: Final = 65536
"""Bytes of a line of a pipe; a longer one is no command, and is cut."""
PATIENCE: Final = 1.0
"""Seconds without a stop until a terminal is told that the guest runs."""
CONSOLE_LINES: Final = 5
_COLOURS: Final = {
    "heading": "1",
    "title": "2",
    "name": "36",
    "bytes": "2",
    "value": "33",
    "meaning": "32",
    "place": "34",
    "state": "35",
    "offset": "2",
}
"""Parts of the output and their ECMA-48 colours."""


def paint(kind: str, text: str) -> str:
    """Colour a text for a terminal."""
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if kind in _COLOURS else text


def plain(_kind: str, text: str) -> str:
    """Leave a text as it is."""
    return text


def check_words(words: Sequence[Command]) -> None:
    """Raise ConfigError for a pattern that no trace event matches."""
    for each in words:
        if each.wanted is not None and each.wanted.pattern:
            check_patterns((each.wanted.pattern,))


class Prompt:
    """The user's lines, from a terminal with history and editing, or from a pipe or file. `ask` asks for one more."""

    def __init__(self, post: Callable[[Callable[[], object]], object]) -> None:
        self._post = post
        self._wanted = threading.Semaphore(0)
        self.taken: Callable[[str | None], object] = lambda line: None
        """Called on the loop with each line, None at the end of input."""
        self.on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._settings: list[Any] | None = None
        self._rest = b""
        if self.on_terminal:
            with suppress(ImportError, termios.error):
                import readline  # noqa: F401  history and editing for `input`

                self._settings = termios.tcgetattr(0)
        threading.Thread(target=self._run, name="prompt", daemon=True).start()

    def ask(self) -> None:
        self._wanted.release()

    def close(self) -> None:
        """Give the terminal back as it was: the machine may end while a line is edited."""
        if self._settings is not None:
            with suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSADRAIN, self._settings)

    def _read(self) -> str:
        """Return the next line. Raises EOFError. Not from sys.stdin where there is no terminal: at the program's end
        its lock would still be held.
        """
        if self.on_terminal:
            return input(PROMPT)
        while b"\n" not in self._rest and len(self._rest) < LINE_LIMIT:
            data = os.read(0, 4096)
            if not data:
                if not self._rest:
                    raise EOFError
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace")

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            line: str | None
            try:
                line = self._read()
            except (EOFError, OSError, ValueError):
                line = None
            except UnicodeDecodeError:
                line = "\ufffd"
            self._post(lambda text=line: self.taken(text))  # type: ignore[misc]
            if line is None:
                return


class Stepping:
    """One stepped session: obeys commands, prints stops. All but `console` run on the loop's thread."""

    def __init__(self, script: Sequence[Command] | None, hint: str = "") -> None:
        self._asks = script is None
        self._queue = deque(script or ())  # commands to obey, each when the machine stands
        self._hint = hint
        self._last: Command | None = None
        self._stop: show.Stop | None = None
        self._asked = False
        self._status: int | None = None
        self._console_tail: deque[str] = deque(maxlen=CONSOLE_LINES)
        self._console_rest = b""
        self.in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._paint = paint if self.in_colour else plain
        self._runs: object = None

    def console(self, data: bytes) -> None:
        """Keep the last lines of the guest's console, on any thread."""
        *lines, rest = (self._console_rest + data).split(b"\n")
        self._console_rest = rest[-4096:]
        self._console_tail.extend(one_line(line.rstrip(b"\r")) for line in lines if line.strip())

    def run(
        self,
        config: MachineConfig,
        sockets: Sequence[Path],
        started: Callable[[Session], object],
        timeout: float | None = None,
    ) -> int:
        """Run the machine to its end; return the exit status. `started` is called when the monitor answers."""
        config.paused = True
        with Session(config, sockets=sockets, console=lambda: CallbackConsole(self.console)) as session:
            machine = self._machine = session.machine
            self._stepper = Stepper(machine, self._stopped)
            session.start(self._signal)
            started(session)
            if timeout is not None:
                machine.loop.after(timeout, lambda: self._quit(exit_status.TIMEOUT))
            self._prompt: Prompt | None = None
            if self._asks:
                self._prompt = Prompt(machine.loop.post)
                self._prompt.taken = self._line
                if self._prompt.on_terminal and self._hint:
                    self._print(self._hint)
            self._next()
            try:
                outcome = machine.run()
            finally:
                self._stepper.close()
                if self._prompt is not None:
                    self._prompt.close()
            machine.halt()
            if not self._stepper.stopped:
                self._happened()
            if self._status is None:
                text = {"poweroff": "the guest powered off", "reset": "the guest reset"}.get(outcome.kind)
                if text is not None:
                    self._print(text)
            return self._status if self._status is not None else report(outcome)

    def execute(self, command: str | None) -> None:
        """Run a command in the guest once its agent is there; the machine ends with its status."""
        if command is None:
            return

        def done(status: int | None) -> None:
            self._quit(exit_status.GUEST_DIED if status is None else status)

        self._machine.agent.execute(command, lambda stream, data: self.console(data), done)

    # What the user wants

    def _next(self) -> None:
        """Obey the commands that wait, while the machine stands; then ask for more, or end with the script."""
        while self._queue and self._stepper.stopped and self._machine.outcome is None:
            self._obey(self._queue.popleft())
        if not self._stepper.stopped:
            return
        if self._prompt is None:
            if self._machine.outcome is None:
                self._quit(0)
        elif not self._asked:
            self._asked = True
            self._prompt.ask()

    def _line(self, line: str | None) -> None:
        self._asked = False
        if self._machine.outcome is not None:
            return
        if line is None:
            self._quit(0)
            return
        if not self._stepper.stopped:  # typed ahead while the guest ran
            return
        try:
            words = commands.parse(line)
            check_words(words)
        except ConfigError as error:
            self._print(str(error))
            if self._prompt is not None and not self._prompt.on_terminal:
                self._quit(exit_status.USAGE)
                return
            words = []
        if not words and not line.strip() and self._last is not None and self._prompt and self._prompt.on_terminal:
            words = [self._last]
        self._queue.extend(words)
        self._next()

    def _obey(self, command: Command) -> None:
        machine = self._machine
        if command.wanted is not None:
            self._last = command
            self._await()
            self._stepper.go(command.wanted)
            return
        match command.letter:
            case "q":
                self._quit(0)
            case "?":
                for line in commands.help_lines():
                    self._print(line)
            case "w":
                self._show_waits()
            case "l":
                for record in self._stepper.events.copy():
                    self._print(cut(f"  · {one_line(record.text())}", self._width))
            case "s":
                self._show_stop()
            case "v":
                self._map()
            case "r":
                self._registers()
            case "d":
                try:
                    data = machine.memory.read(command.address, command.length)
                except GuestError as error:
                    self._print(str(error))
                    return
                for line in _dump(command.address, data):
                    self._print(line)

    def _quit(self, status: int) -> None:
        self._status = status
        self._machine.quit()

    def _signal(self, number: int) -> None:
        import signal

        if number == signal.SIGINT and self._prompt is not None and self._prompt.on_terminal:
            if not self._stepper.stopped:
                self._stepper.interrupt()
            else:
                self._print(f"\n`q` ends the guest\n{PROMPT}", end="")
            return
        self._status = 128 + number
        self._machine.quit("host-signal")

    # What is shown

    def _stopped(self, stopped: Stopped) -> None:
        self._forget_wait()
        self._happened()
        self._stop = show.Stop(self._machine, stopped)
        self._show_stop()
        self._show_waits()
        self._machine.loop.post(self._next)

    def _show_stop(self) -> None:
        if self._stop is None:
            self._print("before the guest's first instruction")
            return
        for line in self._stop.lines(self._width, self._paint):
            self._print(line)

    def _show_waits(self) -> None:
        rows = waits(self._machine, self._stepper.blocked_vcpu, self._stepper.held)
        for line in show.waiting(rows, self._width, self._paint):
            self._print(line)

    def _happened(self) -> None:
        for line in show.since(self._stepper.events.copy(), self._width, self._paint):
            self._print(line)
        while self._console_tail:
            self._print(cut(f"  console: {self._console_tail.popleft()}", self._width))

    def _map(self) -> None:
        from pyvmm.analysis import page_map

        def shade(owner: str, text: str) -> str:
            return f"\x1b[{page_map.look(owner).colour}m{text}\x1b[0m" if self.in_colour else text

        for line in page_map.lines(self._machine.monitor.page_map(), self._width, shade):
            self._print(line)

    def _registers(self) -> None:
        for thread in self._machine.slot.threads:
            regs = thread.vcpu.regs
            names = ("rip", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
            cells = [f"{name} {getattr(regs, name):#x}" for name in (*names, "rflags")]
            self._print(f"  vcpu {thread.index}")
            for begin in range(0, len(cells), 4):
                self._print("    " + "  ".join(cell.ljust(23) for cell in cells[begin : begin + 4]).rstrip())

    def _await(self) -> None:
        """Say on a terminal, after a while, that the guest runs."""
        self._forget_wait()
        if self._prompt is not None and self._prompt.on_terminal:
            self._runs = self._machine.loop.after(PATIENCE, self._say_that_it_runs)

    def _say_that_it_runs(self) -> None:
        self._runs = None
        self._print("the guest runs; Ctrl-C stops it")

    def _forget_wait(self) -> None:
        timer, self._runs = self._runs, None
        if timer is not None:
            timer.cancel()  # type: ignore[attr-defined]

    @property
    def _width(self) -> int:
        return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH

    def _print(self, line: str, end: str = "\n") -> None:
        with suppress(BrokenPipeError):
            print(line, end=end, flush=True)


def _dump(address: int, data: bytes) -> Iterator[str]:
    for begin in range(0, len(data), 16):
        row = data[begin : begin + 16]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        yield f"  {address + begin:#010x}  {row.hex(' ').ljust(48)} {text}"
