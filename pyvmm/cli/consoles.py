"""Where the guest's first serial port leads: the user's terminal, a file, a pseudo-terminal, or nowhere.

Each console is a context manager with `write(data)` for the guest's output; `attach(machine)` starts passing input.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from devices.serial import RECEIVE_LIMIT
from pyvmm.errors import ConfigError
from pyvmm.machine import Machine

_READ_SIZE = 4096

_FULL_PERIOD = 0.1
"""Seconds between two looks at whether the guest has read enough for more input."""


class Console:
    """`none`: the guest's output is dropped, and it gets no input."""

    place = "null"
    """What it is, in QEMU's form for character devices."""
    tied = False
    """Whether the machine ends with its input: so it does not outlive a program that started it by a pipe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """The guest's output, on the loop's thread or a vCPU's."""

    def attach(self, machine: Machine) -> None:
        """Begin to pass input to `machine`."""

    def close(self) -> None:
        """Give the terminal or file back."""


class StdioConsole(Console):
    """The terminal, raw, with the Ctrl-A keys; or plain input and output where there is none."""

    place = "stdio"

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stack = contextlib.ExitStack()
        self._machine: Machine | None = None
        self._broken = False
        self._is_file = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._broken:
            try:
                view = view[os.write(self._stdout, view) :]
            except BlockingIOError:  # somebody made the terminal non-blocking; it takes more in a moment
                os.set_blocking(self._stdout, True)
            except OSError:  # nobody reads any more
                self._broken = True
                if self._machine is not None:
                    self._machine.loop.post(self._machine.quit)

    def attach(self, machine: Machine) -> None:
        from pyvmm.control import hmp
        from pyvmm.terminal import ConsoleInput, MonitorPrompt, raw_terminal

        self._machine = machine
        prompt = MonitorPrompt(lambda line: hmp.execute(machine, line), hmp.names)
        self._input = ConsoleInput(machine.serials[0].receive, self.write, machine.quit, prompt)
        terminal = os.isatty(self._stdin)
        if terminal:
            self._stack.enter_context(raw_terminal(self._stdin))
        readable = (lambda: self._readable(machine, self._input.feed)) if terminal else (lambda: self._plain(machine))
        try:
            machine.loop.add_reader(self._stdin, readable)
            self._stack.callback(machine.loop.remove_reader, self._stdin)
        except PermissionError:  # a plain file: epoll has nothing to wait for, it is all there
            self._is_file = True
            self._plain(machine)

    def _plain(self, machine: Machine) -> None:
        """Input from a pipe or a file: as much as the serial port queues, the rest when the guest has read some."""
        port = machine.serials[0]
        while port.queued + _READ_SIZE <= RECEIVE_LIMIT:
            data = self._read()
            if not data:
                machine.loop.remove_reader(self._stdin)
                if self.tied:
                    machine.quit()
                return
            port.receive(data)
            if not self._is_file:
                return  # there may be no more now; the loop calls again
        machine.loop.remove_reader(self._stdin)
        machine.loop.after(_FULL_PERIOD, lambda: self._again(machine))

    def _again(self, machine: Machine) -> None:
        if self._is_file:
            self._plain(machine)
        else:
            machine.loop.add_reader(self._stdin, lambda: self._plain(machine))

    def _read(self) -> bytes:
        try:
            return os.read(self._stdin, _READ_SIZE)
        except OSError:  # the terminal was hung up
            return b""

    def _readable(self, machine: Machine, feed: Callable[[bytes], None]) -> None:
        data = self._read()
        if data:
            feed(data)
        else:
            machine.loop.remove_reader(self._stdin)

    def close(self) -> None:
        self._stack.close()


class FileConsole(Console):
    """The guest's output into a file, made anew."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"console {path}: {error.strerror}") from error
        self._path = path
        self.place = f"file:{path}"
        self._failed = False

    def write(self, data: bytes) -> None:
        if not self._failed:
            try:
                self._file.write(data)
            except OSError as error:
                self._failed = True
                print(f"pyvmm: console {self._path}: {error.strerror}; the rest is lost", file=sys.stderr)

    def close(self) -> None:
        self._file.close()


class PtyConsole(Console):
    """A pseudo-terminal for `screen`, `minicom` and the like; its name is printed at the start."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()  # the slave stays open: no hang-up while nobody is attached
        os.set_blocking(self._master, False)
        self.place = f"pty:{os.ttyname(self._slave)}"
        print(f"pyvmm: console on {os.ttyname(self._slave)}", file=sys.stderr)
        self._machine: Machine | None = None

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads: a real line loses it too
            os.write(self._master, data)

    def attach(self, machine: Machine) -> None:
        self._machine = machine
        machine.loop.add_reader(self._master, lambda: self._readable(machine))

    def _readable(self, machine: Machine) -> None:
        with contextlib.suppress(OSError):
            machine.serials[0].receive(os.read(self._master, _READ_SIZE))

    def close(self) -> None:
        if self._machine is not None:
            self._machine.loop.remove_reader(self._master)
        os.close(self._master)
        os.close(self._slave)


def open_console(where: str) -> Console:
    """The console for `--console stdio|pty|none|FILE`."""
    match where:
        case "stdio":
            return StdioConsole()
        case "pty":
            return PtyConsole()
        case "none":
            return Console()
        case path:
            return FileConsole(Path(path))
