"""One machine from the command line, from start to exit status: console, monitors, traces, signals, time limit.

Runs where KVM is: on this machine, or inside the emulated host.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyvmm.cli.consoles import Console, open_console
from pyvmm.cli.trace_sinks import traces
from pyvmm.control.registry import stall_note
from pyvmm.guest_text import clean, one_line
from pyvmm.host.inside import socket_path, user_pid
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig, Outcome

STATUS_PANIC = 255
STATUS_ERROR = 1
STATUS_TIMEOUT = 124
SWITCH_INTERVAL = 0.001
"""Seconds a busy Python thread may keep the GIL while a vCPU waits for it."""


@dataclass(slots=True)
class Session:
    """What `pyvmm run` was asked for, all of it resolved."""

    config: MachineConfig
    console: str = "stdio"
    command: str | None = None
    timeout: float | None = None
    sockets: list[Path] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    trace_file: Path | None = None
    trace_format: str | None = None
    tied: bool = False  # end when standard input does


def run_session(session: Session) -> int:
    """Run the machine to its end; the exit status. ConfigError and HostError are the caller's to print."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            traces(session.trace, session.trace_file, session.trace_format, machine=session.config.name)
        )
        loop = Loop()
        console = stack.enter_context(open_console(session.console))
        console.tied = session.tied
        machine = stack.enter_context(Machine(session.config, loop, console=console.write))
        run = _Run(session, machine, console)
        stack.enter_context(run.signals())
        machine.start()
        # From here on the guest boots beside us.
        serve(session.sockets, loop, machine, stack)
        # What start-up made lives as long as the machine; a collection that walks it would hold up the guest.
        gc.collect()
        gc.freeze()
        return run.run()


def serve(sockets: list[Path], loop: Loop, machine: Machine, stack: contextlib.ExitStack) -> None:
    """Monitors on `sockets`, until `stack` ends. Raises ConfigError for one in use."""
    from pyvmm.control.server import ControlServer

    machine.pid = user_pid()
    stack.enter_context(ControlServer(loop, machine, *map(socket_path, sockets)))


class _Run:
    """The machine while it runs."""

    def __init__(self, session: Session, machine: Machine, console: Console) -> None:
        self._session = session
        self._machine = machine
        self._console = console
        self._status: int | None = None

    def run(self) -> int:
        machine, session = self._machine, self._session
        self._console.attach(machine)
        machine.console_place = self._console.place
        if session.sockets:
            machine.watchdog.note = stall_note(session.sockets[0])
        if session.timeout is not None:
            machine.loop.after(session.timeout, self._timed_out)
        if session.command is not None:
            machine.agent.execute(session.command, self._output, self._command_done)
        outcome = machine.run()
        machine.close()  # the last console output comes before what we say
        self._console.close()
        if self._status is not None:
            return self._status
        if session.command is not None and outcome.kind in ("poweroff", "reset"):
            _say("the guest ended before the command did")
            return STATUS_PANIC
        return report(outcome, show_text=session.console != "stdio")

    def _output(self, stream: str, data: bytes) -> None:
        fd = 1 if stream == "out" else 2
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except OSError:  # nobody reads any more
            self._end(128 + signal.SIGPIPE)

    def _command_done(self, status: int | None) -> None:
        if status is None:
            _say("the guest restarted before the command ended")
        self._end(STATUS_PANIC if status is None else status)

    def _timed_out(self) -> None:
        _say(f"time limit of {self._session.timeout:g} s reached, machine ended")
        self._end(STATUS_TIMEOUT)

    def _signalled(self, number: int) -> None:
        self._end(128 + number, "host-signal")

    def _end(self, status: int, cause: str = "host-qmp-quit") -> None:
        if self._status is None:
            self._status = status
        self._machine.quit(cause)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end the machine, with the status a shell would show."""
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda n, frame: self._machine.loop.post_first(self._signalled, n))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def report(outcome: Outcome, *, show_text: bool = True) -> int:
    """Tell the user how the machine ended; the exit status. `show_text`: the panic's text was seen nowhere else."""
    match outcome.kind:
        case "panic":
            _say(f"guest panicked: {outcome.text}")
            if show_text and outcome.crash is not None and outcome.crash.text:
                print(clean(outcome.crash.text), file=sys.stderr)
            return STATUS_PANIC
        case "error":
            _say(outcome.text)
            return STATUS_ERROR
    return 0


def _say(text: str) -> None:
    print(f"pyvmm: {one_line(text)}", file=sys.stderr)
