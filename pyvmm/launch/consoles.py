"""Consoles for the guest's first serial port: the user's terminal, a file, a pseudo-terminal, or none.

Each console is a context manager with `write(data)` for the guest's output; `attach(machine)` starts passing input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import tty
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pyvmm.devices.serial.uart import RECEIVE_LIMIT
from pyvmm.errors import ConfigError
from pyvmm.foreground import FOREGROUND_POLL, Terminal, raw_terminal, window_of
from pyvmm.host.inside import inside
from pyvmm.machine import Machine
from pyvmm.output import Output

_READ_SIZE = 4096

_PTY_LIMIT = 256 << 10
"""Bytes of output kept for a later reader of a pseudo-terminal: a boot with all its messages."""

_FULL_PERIOD = 0.1
"""Poll interval, in seconds, until the serial port's input queue has room again."""


class Console:
    """The console `none`, and the base of the others: drops the guest's output and gives it no input."""

    place = "null"
    """The console's name, in QEMU's form for character devices."""
    outputs: Sequence[Output] = ()
    """The outputs whose backlog throttles the guest's serial port."""
    tied = False
    """Whether the machine ends at the end of its input, so as not to outlive the program at the pipe's other end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Write the guest's output, on the loop's thread or a vCPU's. Does not block."""

    def attach(self, machine: Machine) -> None:
        """Start passing input to `machine`."""

    def release(self) -> None:
        """Stop passing input, once the guest has ended. While output is flushed, Ctrl-C is a signal again."""

    def close(self) -> None:
        """Restore the terminal, or close the file."""


class CallbackConsole(Console):
    """Calls a function with the guest's output, on the loop's thread or a vCPU's; gives the guest no input."""

    def __init__(self, write: Callable[[bytes], None], place: str = "null") -> None:
        self.write = write  # type: ignore[method-assign, assignment]
        self.place = place


class SwitchableConsole(Console):
    """A console that is `none` until `switch_to` sets another: `pyvmm tour` ends in the guest's shell."""

    def __init__(self) -> None:
        self._inner = Console()

    def switch_to(self, console: Console) -> None:
        """Delegate to `console` from now on."""
        self._inner = console

    def write(self, data: bytes) -> None:
        self._inner.write(data)

    def attach(self, machine: Machine) -> None:
        self._inner.attach(machine)

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()


class StdioConsole(Console):
    """Connects the guest to the terminal in raw mode, with the Ctrl-A keys; to plain input and output without one."""

    place = "stdio"

    def __init__(self, output: Output, stdin: int = 0) -> None:
        self.outputs = (output,)
        self.write = output.write  # type: ignore[method-assign]
        self._stdin = stdin
        self._stack = contextlib.ExitStack()
        self._is_file = False

    def attach(self, machine: Machine) -> None:
        from pyvmm.control import hmp
        from pyvmm.launch.terminal import ConsoleInput, MonitorPrompt

        prompt = MonitorPrompt(lambda line: hmp.execute(machine.monitor, line), hmp.names)
        self._input = ConsoleInput(machine.board.serials[0].receive, self.write, machine.quit, prompt)
        self._follow_window(machine)
        terminal = self._stack.enter_context(raw_terminal(self._stdin))
        if terminal is not None:
            self._keyboard(machine, terminal)
            self._stack.callback(machine.loop.remove_reader, self._stdin)
            return
        try:
            machine.loop.add_reader(self._stdin, lambda: self._plain(machine))
            self._stack.callback(machine.loop.remove_reader, self._stdin)
        except PermissionError:  # epoll refuses a plain file, which is always readable
            self._is_file = True
            self._plain(machine)

    def _follow_window(self, machine: Machine) -> None:
        """Send the terminal's size to the guest, now and whenever it changes."""

        def send_size() -> None:
            if size := window_of(self._stdin) or window_of(self.outputs[0].fd):
                machine.agent.resize(*size)

        send_size()
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGWINCH, lambda number, frame: machine.loop.post(send_size))
            self._stack.callback(signal.signal, signal.SIGWINCH, before)

    def _plain(self, machine: Machine) -> None:
        """Pass input from a pipe or a file, as far as the serial port's queue has room; the rest later."""
        port = machine.board.serials[0]
        while port.queued + _READ_SIZE <= RECEIVE_LIMIT:
            data = self._read()
            if not data:
                machine.loop.remove_reader(self._stdin)
                if self.tied:
                    machine.quit()
                return
            port.receive(data)
            if not self._is_file:
                return  # a further read might block; the loop calls again
        machine.loop.remove_reader(self._stdin)
        machine.loop.after(_FULL_PERIOD, lambda: self._resume_input(machine))

    def _resume_input(self, machine: Machine) -> None:
        if self._is_file:
            self._plain(machine)
        else:
            machine.loop.add_reader(self._stdin, lambda: self._plain(machine))

    def _read(self) -> bytes:
        try:
            return os.read(self._stdin, _READ_SIZE)
        except OSError:  # the terminal was hung up
            return b""

    def _keyboard(self, machine: Machine, terminal: Terminal) -> None:
        """Pass input from a terminal, while this process is in its foreground."""
        loop = machine.loop

        def readable() -> None:
            if not terminal.acquire():
                loop.remove_reader(self._stdin)  # input belongs to the shell now
                loop.after(FOREGROUND_POLL, wait)
                return
            data = self._read()
            if data:
                self._input.feed(data)
            else:
                loop.remove_reader(self._stdin)

        def wait() -> None:
            if terminal.acquire():
                loop.add_reader(self._stdin, readable)
            elif machine.outcome is None:
                loop.after(FOREGROUND_POLL, wait)

        wait()

    def release(self) -> None:
        self._stack.close()

    def close(self) -> None:
        self.release()


class FileConsole(Console):
    """Writes the guest's output to a new file. If the disk is full, the rest is lost; the machine runs on."""

    def __init__(self, path: Path) -> None:
        check_reachable(path, "console")
        try:
            self._file = open(path, "wb", buffering=0)
        except OSError as error:
            raise ConfigError(f"console {path}: {error.strerror}") from error
        output = Output(self._file.fileno(), f"console {path}")
        self.outputs = (output,)
        self.write = output.write  # type: ignore[method-assign]
        self.place = f"file:{path}"

    def close(self) -> None:
        if not self.outputs[0].pending:  # else its thread still writes: closed with the process
            self._file.close()


class PtyConsole(Console):
    """Connects the guest to a pseudo-terminal, for `screen` or `minicom`; prints its name at the start.

    Output without a reader is kept up to a limit, so that a later reader sees the boot; the rest is lost, as on a
    real line, and its size printed at the end.
    """

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()  # the slave stays open: no hang-up without a reader
        tty.setraw(self._slave)  # else the terminal echoes the guest's output back to it
        os.set_blocking(self._master, False)
        self.place = f"pty:{os.ttyname(self._slave)}"
        print(f"pyvmm: console on {os.ttyname(self._slave)}", file=sys.stderr, flush=True)
        self._machine: Machine | None = None
        self._kept = bytearray()
        self._lost = 0
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            room = max(0, _PTY_LIMIT - len(self._kept))
            self._lost += max(0, len(data) - room)
            self._kept += data[:room]
            left = self._send()
        if left and self._machine is not None:
            self._machine.loop.post(self._wait)

    def _send(self) -> bool:
        """Write until the terminal is full; return whether output is left."""
        with contextlib.suppress(OSError):
            while self._kept:
                del self._kept[: os.write(self._master, self._kept)]
        return bool(self._kept)

    def _wait(self) -> None:
        if self._machine is not None:
            self._machine.loop.add_writer(self._master, self._writable)

    def _writable(self) -> None:
        with self._lock:
            left = self._send()
        if not left and self._machine is not None:
            self._machine.loop.remove_writer(self._master)

    def attach(self, machine: Machine) -> None:
        self._machine = machine
        machine.loop.add_reader(self._master, lambda: self._readable(machine))
        self._wait()

    def _readable(self, machine: Machine) -> None:
        with contextlib.suppress(OSError):
            machine.board.serials[0].receive(os.read(self._master, _READ_SIZE))

    def close(self) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.loop.remove_reader(self._master)
            machine.loop.remove_writer(self._master)
        lost = self._lost + len(self._kept)
        if lost:
            print(f"pyvmm: console {self.place}: {lost} bytes were not read and are lost", file=sys.stderr)
        for fd in {self._master, self._slave} - {-1}:
            os.close(fd)
        self._master = self._slave = -1


def check_reachable(path: Path, what: str) -> None:
    """Raise ConfigError for a FIFO in the emulated host: each kernel has its own FIFO behind the path."""
    if inside() and path.is_fifo():
        raise ConfigError(f"{what} {path}: the emulated host cannot write to this computer's FIFOs; name a file")


def open_console(where: str, output: Output) -> Console:
    """Return the console for `--console stdio|pty|none|FILE`; `output` is standard output."""
    match where:
        case "stdio":
            return StdioConsole(output)
        case "pty":
            return PtyConsole()
        case "none":
            return Console()
        case path:
            return FileConsole(Path(path))
