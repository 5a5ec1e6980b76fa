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
from typing import Any

from pyvmm import held_threads
from pyvmm.client.registry import stall_note
from pyvmm.control.door import Door
from pyvmm.guest_text import clean
from pyvmm.host.inside import inside, socket_path, user_pid
from pyvmm.launch.confined import confine_session, open_doors
from pyvmm.launch.consoles import Console, open_console
from pyvmm.launch.exit_status import status_of
from pyvmm.launch.notices import Notices
from pyvmm.launch.outputs import PATIENCE, Outputs, connect, drain, say, say_ended, say_lost, settle, threaded
from pyvmm.launch.trace_sinks import traces
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig, Outcome
from pyvmm.output import Output
from pyvmm.sandbox.confine import Mode

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
    sandbox: Mode = "off"


def run_session(session: Session) -> int:
    """Run the machine to its end; the exit status. ConfigError and HostError are the caller's to print."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    with contextlib.ExitStack() as stack:
        held_threads.hold()
        stack.callback(held_threads.release)
        outputs = stack.enter_context(threaded())
        tracing = stack.enter_context(
            traces(session.trace, session.trace_file, session.trace_format, machine=session.config.name)
        )
        loop = Loop()
        doors = open_doors(map(socket_path, session.sockets), loop, stack, confined=session.sandbox != "off")
        console = stack.enter_context(open_console(session.console, outputs.out))
        console.tied = session.tied
        machine = stack.enter_context(Machine(session.config, loop, console=console.write))
        run = _Run(session, machine, console, outputs)
        stack.enter_context(run.signals())
        if session.sockets:
            machine.watchdog.keep_note(stall_note(session.sockets[0]))
        confine_session(session.sandbox, machine, doors)
        # All is open, and only now there are threads, which are confined like us.
        held_threads.release()
        machine.start()
        # From here on the guest boots beside us.
        serve(doors, loop, machine, stack)
        # What start-up made lives as long as the machine; a collection that walks it would hold up the guest.
        gc.collect()
        gc.freeze()
        status = run.run()
    return status or int(tracing.failed)


def serve(doors: list[Door], loop: Loop, machine: Machine, stack: contextlib.ExitStack) -> None:
    """Monitors at `doors`, until `stack` ends."""
    from pyvmm.control.server import ControlServer

    machine.pid = user_pid()
    stack.enter_context(ControlServer(loop, machine, *doors))


class _Run:
    """The machine while it runs."""

    def __init__(self, session: Session, machine: Machine, console: Console, outputs: Outputs) -> None:
        self._session = session
        self._machine = machine
        self._console = console
        self._outputs = outputs
        self._status: int | None = None
        self._notices = Notices(machine, waits_for_agent=session.command is not None)
        self._forced: int | None = None  # the status of a signal or of the time limit
        self._counted = [outputs.out, outputs.err]  # whose losses show in the status
        for output in console.outputs:
            connect(machine, 0, output, self._output_failed)
            if output not in self._counted:
                self._counted.append(output)
        if session.command is not None:
            for output in (outputs.out, outputs.err):
                connect(machine, 1, output, self._output_failed)

    def run(self) -> int:
        machine, session = self._machine, self._session
        self._console.attach(machine)
        machine.console_place = self._console.place
        if session.timeout is not None:
            machine.loop.after(session.timeout, self._timed_out)
        if session.command is not None:
            machine.agent.execute(session.command, self._output, self._command_done)
        outcome = machine.run()
        machine.halt()  # the last console output comes before what we say
        self._console.release()
        asked = outcome.kind == "quit" and self._status is None
        self._drain(PATIENCE if asked or self._forced is not None else None)
        machine.close()
        self._console.close()
        return settle(self._counted, self._ended(outcome))

    def _ended(self, outcome: Outcome) -> int:
        """Tell how it ended; the status."""
        if self._forced is not None:
            return self._forced
        if self._status is not None:
            return self._status
        if self._session.command is not None and outcome.kind in ("poweroff", "reset"):
            say("the guest ended before the command did")
            return STATUS_PANIC
        return report(outcome, show_text=self._session.console != "stdio", told=self._notices.panic_told)

    def _drain(self, seconds: float | None) -> None:
        machine = self._machine
        drain(machine, self._counted, lambda: machine.hurried or self._forced is not None, seconds)
        if self._forced is not None or machine.hurried:
            for output in self._counted:
                output.flush(PATIENCE)

    def _output(self, stream: str, data: bytes) -> None:
        (self._outputs.out if stream == "out" else self._outputs.err).write(data)

    def _output_failed(self, output: Output, error: OSError) -> None:
        if output is self._outputs.out or (output is self._outputs.err and self._session.command is not None):
            if self._machine.outcome is None:
                say_ended(output, error)
            else:
                say_lost(output, error)
            self._end(status_of(error))
        elif output is not self._outputs.err:
            say_lost(output, error)

    def _command_done(self, status: int | None) -> None:
        if status is None:
            if self._notices.panicked:
                return  # a crash kernel has started the agent: let it do its work; the machine's end tells the status
            say("the guest, or the agent in it, restarted before the command ended")
        self._end(STATUS_PANIC if status is None else status)

    def _timed_out(self) -> None:
        say(f"time limit of {self._session.timeout:g} s reached, machine ended")
        self._force(STATUS_TIMEOUT)

    def _signalled(self, number: int) -> None:
        self._force(128 + number, "host-signal")

    def _force(self, status: int, cause: str = "host-qmp-quit") -> None:
        if self._forced is None:
            self._forced = status
        self._machine.quit(cause)

    def _end(self, status: int) -> None:
        if self._status is None:
            self._status = status
        if self._machine.outcome is None:
            self._machine.quit()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end the machine, with the status a shell would show. One that was ignored when
        we came (`nohup`, a script's `&`) stays ignored.
        """
        post = self._machine.loop.post_first
        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda n, frame: post(self._signalled, n))
        before |= stop_with_outer_side()
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def stop_with_outer_side() -> dict[int, Any]:
    """In the emulated host, let SIGTSTP stop this process; the handler from before. No shell is there, so the kernel
    would ignore it; the outer side is stopped when it hears that we are.
    """
    if not inside():
        return {}
    number = signal.SIGTSTP
    return {number: signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))}


def report(outcome: Outcome, *, show_text: bool = True, told: str = "") -> int:
    """Tell the user how the machine ended; the exit status. `show_text`: the panic's text was seen nowhere else.
    `told`: the panic's line, if it was said already.
    """
    match outcome.kind:
        case "panic":
            if outcome.text != told:
                say(f"guest panicked: {outcome.text}")
            if show_text and outcome.crash is not None and outcome.crash.text:
                print(clean(outcome.crash.text), file=sys.stderr)
            return STATUS_PANIC
        case "error":
            say(outcome.text)
            return STATUS_ERROR
    return 0
