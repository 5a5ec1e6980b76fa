"""Runs a machine to its end for `pyvmm run`: output, COMMAND, the time limit, and the exit status.

Runs where KVM is: on this machine, or inside the emulated host.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pyvmm.gdb_place import Place, gdb_place, show_place
from pyvmm.guest_text import clean
from pyvmm.launch import exit_status
from pyvmm.launch.consoles import open_console
from pyvmm.launch.driver_report import driver_report
from pyvmm.launch.notices import Notices
from pyvmm.launch.outputs import (
    FLUSH_TIMEOUT,
    Outputs,
    connect,
    disconnect,
    drain,
    final_status,
    report_ended,
    report_lost,
    threaded_outputs,
    try_print_message,
)
from pyvmm.launch.session import Session
from pyvmm.launch.trace_sinks import TraceSettings
from pyvmm.machine import MachineConfig, Outcome
from pyvmm.output import Output
from pyvmm.paths import runtime_folder
from pyvmm.qapi import ShutdownCause
from pyvmm.sandbox.confine import Mode
from pyvmm.share.spec import Share


@dataclass(slots=True)
class RunOptions:
    """Options of `pyvmm run` that are not part of the MachineConfig."""

    console: str = "stdio"
    command: str | None = None
    timeout: float | None = None
    trace: TraceSettings = field(default_factory=TraceSettings)
    tied: bool = False  # the machine ends at the end of standard input
    sandbox: Mode = "off"
    gdb: str | None = None  # as the user gave it
    vsock: Path | None = None
    shares: Sequence[Share] = ()


def run_session(config: MachineConfig, options: RunOptions, sockets: Sequence[Path]) -> int:
    """Run the machine to its end and return the exit status. Raises ConfigError and HostError, without printing."""
    with threaded_outputs() as outputs:
        console = partial(open_console, options.console, outputs.out)
        place = gdb_place(options.gdb, sockets[0] if sockets else runtime_folder() / config.name)
        with Session(
            config,
            sockets=sockets,
            console=console,
            trace=options.trace,
            sandbox=options.sandbox,
            gdb=place,
            vsock=options.vsock,
            shares=options.shares,
        ) as session:
            session.console.tied = options.tied
            run = _Run(options, session, outputs)
            session.start(run.on_signal)
            _tell_debugger(config, place)
            status = run.run()
    return status or int(session.tracing.failed)


def _tell_debugger(config: MachineConfig, place: Place | None) -> None:
    """Print where a debugger connects, and what a machine that is paused from the start waits for."""
    if place is not None:
        try_print_message(f"for GDB: `target remote {show_place(place)}`, or `pyvmm gdb {config.name}`")
    if config.paused:
        then = "GDB's continue" if place is not None else f"`pyvmm gdb {config.name}`"
        try_print_message(f"the guest waits before its first instruction: {then}, or `cont` in the monitor starts it")


class _Run:
    """State of one run of the machine: outputs, notices and the exit status."""

    def __init__(self, options: RunOptions, session: Session, outputs: Outputs) -> None:
        self._options = options
        machine = self._machine = session.machine
        console = self._console = session.console
        self._outputs = outputs
        self._status: int | None = None
        self._notices = Notices(machine, waits_for_agent=options.command is not None)
        self._forced: int | None = None  # the status of a signal or of the time limit
        self._counted = [outputs.out, outputs.err]  # lost output on these changes the status
        for output in console.outputs:
            connect(machine, 0, output, self._output_failed)
            if output not in self._counted:
                self._counted.append(output)
        if options.command is not None:
            for output in (outputs.out, outputs.err):
                connect(machine, 1, output, self._output_failed)

    def run(self) -> int:
        machine, options = self._machine, self._options
        if options.timeout is not None:
            machine.loop.after(options.timeout, self._timed_out)
        if options.command is not None:
            machine.agent.execute(options.command, self._output, self._command_done)
        outcome = machine.run()
        machine.halt()  # the last console output comes before pyvmm's messages
        self._console.release()
        asked = outcome.kind == "quit" and self._status is None
        self._drain(FLUSH_TIMEOUT if asked or self._forced is not None else None)
        machine.close()
        self._console.close()
        status = final_status(self._counted, self._ended(outcome))
        if outcome.kind in ("poweroff", "quit", "reset") and self._forced in (None, exit_status.TIMEOUT):
            for line in driver_report(machine):
                try_print_message(line)
        disconnect(self._counted)
        return status

    def _ended(self, outcome: Outcome) -> int:
        """Print how the machine ended, and return the exit status."""
        if self._forced is not None:
            return self._forced
        if self._status is not None:
            return self._status
        if self._options.command is not None and outcome.kind in ("poweroff", "reset"):
            try_print_message("the guest ended before the command did")
            return exit_status.GUEST_DIED
        return report(outcome, show_text=self._options.console != "stdio", printed=self._notices.panic_printed)

    def _drain(self, seconds: float | None) -> None:
        machine = self._machine
        drain(machine, self._counted, lambda: machine.hurried or self._forced is not None, seconds)
        if self._forced is not None or machine.hurried:
            for output in self._counted:
                output.flush(FLUSH_TIMEOUT)

    def _output(self, stream: str, data: bytes) -> None:
        (self._outputs.out if stream == "out" else self._outputs.err).write(data)

    def _output_failed(self, output: Output, error: OSError) -> None:
        if output is self._outputs.out or (output is self._outputs.err and self._options.command is not None):
            if self._machine.outcome is None:
                report_ended(output, error)
            else:
                report_lost(output, error)
            self._end(exit_status.status_of(error))
        elif output is not self._outputs.err:
            report_lost(output, error)

    def _command_done(self, status: int | None) -> None:
        if status is None:
            if self._notices.panicked:
                return  # the crash kernel started the agent: let it finish; the machine's end sets the status
            try_print_message("the guest, or the agent in it, restarted before the command ended")
        self._end(exit_status.GUEST_DIED if status is None else status)

    def _timed_out(self) -> None:
        try_print_message(f"time limit of {self._options.timeout:g} s reached, machine ended")
        self._force(exit_status.TIMEOUT)

    def on_signal(self, number: int) -> None:
        self._force(128 + number, "host-signal")

    def _force(self, status: int, cause: ShutdownCause = "host-qmp-quit") -> None:
        if self._forced is None:
            self._forced = status
        self._machine.quit(cause)

    def _end(self, status: int) -> None:
        if self._status is None:
            self._status = status
        if self._machine.outcome is None:
            self._machine.quit()


def report(outcome: Outcome, *, show_text: bool = True, printed: str = "") -> int:
    """Print how the machine ended, and return the exit status. `show_text`: print the panic's text too, which was
    shown nowhere else. `printed`: the panic's line, if it was printed already.
    """
    match outcome.kind:
        case "panic":
            if outcome.text != printed:
                try_print_message(f"guest panicked: {outcome.text}")
            if show_text and outcome.crash is not None and outcome.crash.text:
                print(clean(outcome.crash.text), file=sys.stderr)
            return exit_status.GUEST_DIED
        case "error":
            try_print_message(outcome.text)
            return exit_status.ERROR
        case "exit":
            return outcome.status
    return 0
