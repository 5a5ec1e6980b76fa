"""The outer side of commands in an emulated host: their input, output, terminal and signals.

`run_command` works over any descriptor that leads to an agent: the port of this process's own QEMU, or the socket of
the host daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pyvmm.errors import HostError
from pyvmm.foreground import FOREGROUND_POLL, Terminal, acquired, all_raw, stop_by
from pyvmm.gdb_place import Place
from pyvmm.host.endpoint import Disconnected, Endpoint, window_size
from pyvmm.host.forwards import Forwards
from pyvmm.host.inside import VARIABLE
from pyvmm.host.preload import REPOSITORY, sources_digest
from pyvmm.host.protocol import STDERR, STDIN, STDOUT, TERMINAL, Frame, Kind
from pyvmm.output import Output

NUDGE_EVERY = 1.0
"""Period, in seconds, of the interrupts that the outer side causes in the emulated host.

QEMU's TCG can lose an interrupt: VMRUN sets a bit of the CPU's requests without a lock, while the thread that owns
timers and devices sets another, and one of the two is lost. The interrupt controller keeps it pending and
delivers it with the next one. Without these, no interrupt would follow a lost timer interrupt: the host would hang.
"""
GRACE = 15.0  # seconds for a command to end after SIGTERM or SIGHUP (a guest's power-off takes some)
READER_GRACE = 3.0
"""Seconds without progress of an output's reader, after a terminating signal or a forced end, before giving up."""
STOP_GRACE = 0.5  # seconds for the command to stop before this process stops
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORCED_STATUSES = (124, *(128 + number for number in ENDING_SIGNALS))
FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(slots=True)
class Request:
    """A command to run in the host, and what to connect it to."""

    argv: Sequence[str]
    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    tty: bool | None = None  # use a terminal inside for each stream that is one here; None: if stdin is one
    env: Mapping[str, str] | None = None  # None: this process's environment
    cwd: str | None = None
    forward_sockets: Sequence[Place] = field(default_factory=list)  # where to listen, see inside.py
    vsock: Path | None = None  # a guest's sockets: it listens there, and reaches programs at PATH_PORT
    input: bool = True  # whether the command reads standard input; else the terminal is left alone
    live: bool = False  # without `input`: outputs that are a terminal here are one inside, for colours and progress
    outputs: list[Output] = field(default_factory=list)  # set by running it: the state of the outputs


class Signals:
    """Catches signals to this process and queues them for the loop (main thread only)."""

    def __init__(self) -> None:
        self.caught: list[int] = []

    @contextlib.contextmanager
    def kept(self, endpoint: Endpoint) -> Iterator[None]:
        """Wake `endpoint` at each signal."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before: dict[signal.Signals, object] = {}
        try:
            wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        except ValueError:  # only the main thread can install signal handlers
            os.close(reader)
            os.close(writer)
            yield
            return
        for number in (*FORWARDED_SIGNALS, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, a script's `&`
                before[number] = signal.signal(number, self._catch)
        endpoint.watch(reader, lambda: (os.read(reader, 4096), None)[1])
        try:
            yield
        finally:
            endpoint.unwatch(reader)
            for number, handler in before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(wakeup)
            os.close(reader)
            os.close(writer)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(number)


class CommandRun:
    """Runs one command, from START to EXIT."""

    def __init__(self, endpoint: Endpoint, request: Request, stream: int) -> None:
        self.endpoint = endpoint
        self.request = request
        self.stream = stream
        self.signals = Signals()
        self.forwards = Forwards(endpoint, stream + 1)
        self._ended = False
        self._give_up_at: float | None = None  # set by a terminating signal
        self._reader_due: float | None = None  # deadline for progress of the reader, after such a signal
        self._stop_at: float | None = None  # deadline after which this process stops, even if the command has not
        outer = {STDIN: request.stdin, STDOUT: request.stdout, STDERR: request.stderr}
        wants = (request.input and os.isatty(request.stdin)) if request.tty is None else request.tty
        shown = (STDOUT, STDERR) if request.live and not request.input else ()
        self.on_terminal = [n for n, descriptor in outer.items() if (wants or n in shown) and os.isatty(descriptor)]
        self.outer = outer
        self.terminal = outer[self.on_terminal[0]] if self.on_terminal else None
        # The terminal inside handles line editing, echo and Ctrl-C.
        self.keyboard = Terminal(outer[STDIN], all_raw) if STDIN in self.on_terminal else None

    def run(self) -> int:
        """Run the command and return its status: its exit code, or minus the signal that killed it."""
        try:
            for place in self.request.forward_sockets:
                self.forwards.listen(place)
            if self.request.vsock is not None:
                self.forwards.connect_vsock(self.request.vsock)
            with self.signals.kept(self.endpoint):
                self._start()
                with contextlib.nullcontext() if self.keyboard is None else acquired(self.keyboard, watch=False):
                    return self._serve()
        finally:
            self.forwards.close()
            self.endpoint.forget(self.stream)
            self.endpoint.close_waker()
            if not self._ended:
                self.endpoint.send(Frame(Kind.CLOSE, self.stream))

    def _start(self) -> None:
        request = self.request
        env = dict(os.environ if request.env is None else request.env)
        env[VARIABLE] = str(os.getpid())
        # Messages are English in any case, and each search for a translation (click's) is several 9p requests.
        env.setdefault("LANGUAGE", "C")
        size = self._window() or os.terminal_size((80, 24))
        start = {
            "argv": list(request.argv),
            "env": env,
            "cwd": request.cwd or _working_folder(),
            "tty": self.on_terminal,
            "window": [size.lines, size.columns],
            "sources": sources_digest(),
            "repository": str(REPOSITORY),
            "umask": current_umask(),
        }
        self._connect_outputs()
        self.endpoint.send(Frame(Kind.START, self.stream, payload=json.dumps(start).encode()))

    def _window(self) -> os.terminal_size | None:
        with contextlib.suppress(OSError):
            if self.terminal is not None:
                return os.get_terminal_size(self.terminal)
        return None

    def _serve(self) -> int:
        nudge_at = time.monotonic() + NUDGE_EVERY
        status: int | None = None
        while True:
            for frame in self.endpoint.step(self._timeout(nudge_at)):
                if frame.stream != self.stream:
                    self.forwards.handle(frame)
                    continue
                match frame.kind:
                    case Kind.STARTED:
                        self._connect_input()
                    case Kind.REFUSED:
                        self._ended = True
                        raise HostError(frame.payload.decode(errors="replace"))
                    case Kind.STOPPED:
                        self._stop()
                    case Kind.ENDED:
                        self._command_ended(frame.number)
                    case Kind.EXIT:
                        self._ended = True
                        status = frame.number
                        self._give_up_at = None
            if status is not None and not self.endpoint.unwritten(self.stream):
                return status
            if time.monotonic() >= nudge_at:
                self.endpoint.send(Frame(Kind.NUDGE))
                nudge_at = time.monotonic() + NUDGE_EVERY
            while self.signals.caught:
                number = self.signals.caught.pop(0)
                if status is not None and number in ENDING_SIGNALS:
                    self.endpoint.give_up(self.stream)
                    return 128 + number
                self._forward_signal(number)
            self._check_deadlines()

    def _release_keyboard(self) -> None:
        """Restore the terminal's mode after the command's end, so that Ctrl-C is a signal while output is written."""
        self.endpoint.drop_source(self.stream, STDIN)
        if self.keyboard is not None:
            self.keyboard.restore()
            self.keyboard = None

    def _timeout(self, nudge_at: float) -> float:
        """Return the seconds to the next deadline."""
        dues = [nudge_at, self._give_up_at, self._reader_due, self._stop_at]
        if self.keyboard is not None and not self.keyboard.held:
            dues.append(time.monotonic() + FOREGROUND_POLL)
        return max(0.0, min(due for due in dues if due is not None) - time.monotonic())

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop()
        if self._reader_due is not None and now >= self._reader_due:
            self._reader_due = None
            if self._taken == sum(output.written for output in self.request.outputs):
                self.endpoint.give_up(self.stream)
        if self._give_up_at is not None and now >= self._give_up_at:
            raise HostError(f"the command in the emulated host did not end in {GRACE:.0f} s; it was killed")

    def _connect_input(self) -> None:
        if not self.request.input:
            self.endpoint.send(Frame(Kind.END, self.stream, STDIN))
        elif self.keyboard is not None:
            self.endpoint.source(self.stream, STDIN, self.keyboard.fd, lambda: None, self.keyboard.acquire)
        else:
            self.endpoint.source(self.stream, STDIN, self.outer[STDIN], lambda: None)

    def _connect_outputs(self) -> None:
        """Connect the outputs. Before START: a quick command's output arrives together with STARTED."""
        if self.terminal is not None:
            self._connect_output(TERMINAL, self.terminal, "the terminal")
        for channel, name in ((STDOUT, "standard output"), (STDERR, "standard error")):
            if channel not in self.on_terminal:
                self._connect_output(channel, self.outer[channel], name)

    def _connect_output(self, channel: int, descriptor: int, name: str) -> None:
        output = Output(descriptor, name, progress=True)
        self.request.outputs.append(output)

        def failed() -> None:
            if not self._ended:
                self.endpoint.send(Frame(Kind.BROKEN, self.stream, channel))

        self.endpoint.output(self.stream, channel, output, failed)

    def _forward_signal(self, number: int) -> None:
        match number:
            case signal.SIGWINCH:
                self._resize()
            case signal.SIGTSTP:
                self.endpoint.send(Frame.of_number(Kind.SIGNAL, self.stream, number))
                self._stop_at = time.monotonic() + STOP_GRACE
            case signal.SIGCONT:
                self._resumed()
            case _:
                self.endpoint.send(Frame.of_number(Kind.SIGNAL, self.stream, number))
                if number in ENDING_SIGNALS:
                    self._start_reader_deadline()
                if number in (signal.SIGTERM, signal.SIGHUP) and self._give_up_at is None:
                    self._give_up_at = time.monotonic() + GRACE

    def _start_reader_deadline(self) -> None:
        self._taken = sum(output.written for output in self.request.outputs)
        self._reader_due = time.monotonic() + READER_GRACE

    def _command_ended(self, status: int) -> None:
        """Wait until all its output is written, except after a time limit or a signal."""
        self._release_keyboard()
        if status in FORCED_STATUSES or -status in ENDING_SIGNALS:
            self._start_reader_deadline()

    def _resize(self) -> None:
        if size := self._window():
            self.endpoint.send(Frame(Kind.RESIZE, self.stream, payload=window_size(size.lines, size.columns)))

    def _stop(self) -> None:
        """Stop this process as the command was stopped (SIGTSTP); SIGCONT continues both."""
        self._stop_at = None
        if self.keyboard is not None:
            self.keyboard.restore()
        stop_by(signal.SIGTSTP)
        self._resumed()
        self.endpoint.send(Frame.of_number(Kind.SIGNAL, self.stream, signal.SIGCONT))

    def _resumed(self) -> None:
        if self.keyboard is not None:
            self.keyboard.acquire(resumed=True)
        self._resize()


def run_command(endpoint: Endpoint, request: Request, stream: int = 1) -> int:
    """Run a command over `endpoint`. Raises HostError if it cannot be started or the host ends."""
    try:
        return CommandRun(endpoint, request, stream).run()
    except Disconnected as error:
        raise HostError("the emulated host went away") from error


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise HostError("the working folder was removed: change to another") from None


def current_umask() -> int:
    """Return this process's umask, without changing it: other threads may be creating files."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def complain(text: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
