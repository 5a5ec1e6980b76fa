"""Standard output and error while a machine runs: written by threads, monitored by the loop, flushed at the end.

    how an output ends            the machine          exit status, unless COMMAND's own is not 0
    reader exits (EPIPE)          is ended             141, as a shell shows SIGPIPE
    terminal hangs up (EIO)       is ended             129, as a shell shows SIGHUP
    disk full, closed, ...        is ended             1
    reader stops                  the guest waits      that of the end; 1 if output was given up then

After an end caused by the guest or COMMAND, output is flushed without a time limit, as by any program; a signal,
`quit`, or the run's time limit cuts that short. After one of those the flush takes at most FLUSH_TIMEOUT.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from pyvmm.host.inside import inside
from pyvmm.launch import where
from pyvmm.launch.exit_status import status_of
from pyvmm.machine import Machine
from pyvmm.output import Output

FLUSH_TIMEOUT = 1.0
"""Seconds that the flush may take after a requested end: a signal, `quit`, the time limit."""

POLL = 0.02
"""Poll interval, in seconds, of the flush, while the loop serves the monitor."""


class Outputs:
    """Standard output and error of this process."""

    def __init__(self) -> None:
        self.out = Output(1, "standard output")
        self.err = Output(2, "standard error")


@contextlib.contextmanager
def threaded_outputs() -> Iterator[Outputs]:
    """Write standard output and error by threads while the block runs, `print` included."""
    outputs = Outputs()
    before = sys.stdout, sys.stderr
    for stream in before:
        with contextlib.suppress(OSError):
            stream.flush()
    sys.stdout, sys.stderr = _over(outputs.out, before[0]), _over(outputs.err, before[1])
    try:
        yield outputs
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        for output in (outputs.out, outputs.err):
            output.flush(FLUSH_TIMEOUT)


def _over(output: Output, stream: TextIO) -> TextIO:
    try:
        same = stream.fileno() == output.fd
    except (OSError, ValueError):
        same = False  # replaced by a test
    return output.text(stream) if same else stream


def connect(machine: Machine, port: int, output: Output, failed: Callable[[Output, OSError], None]) -> None:
    """Throttle the guest's serial `port` to the speed of `output`. On an error calls `failed` once, on the loop."""
    slow = machine.throttles.watch(port, lambda: output.level)
    others = output.changed

    def check() -> None:
        if output.error is not None and not output.error_reported:
            output.error_reported = True
            failed(output, output.error)

    def changed() -> None:
        others()
        slow()
        if output.error is not None:
            machine.loop.post(check)

    output.changed = changed
    machine.loop.post(check)  # it may have failed already


def disconnect(outputs: Sequence[Output]) -> None:
    """Stop reporting failures and backlog of `outputs` to the machine's loop, which has ended."""
    for output in outputs:
        output.changed = lambda: None


def drain(machine: Machine, outputs: Sequence[Output], stop: Callable[[], bool], seconds: float | None) -> None:
    """Wait until `outputs` are written, at most `seconds`, or until `stop()`; the loop runs meanwhile."""
    clock = machine.loop.clock
    until = None if seconds is None else clock() + seconds
    if all(output.flush(POLL) for output in outputs):
        return
    while any(output.pending for output in outputs) and not stop() and (until is None or clock() < until):
        machine.loop.step(POLL)


def ended_text(output: Output, error: OSError) -> str:
    """Return the message about an output whose failure ended the machine."""
    if error.errno == errno.EPIPE:
        return f"the reader of {output.name} has exited: the machine was ended"
    return f"{output.name}: {error.strerror}: the machine was ended"


def final_status(outputs: Sequence[Output], status: int) -> int:
    """Discard output that could not be written, print its size, and return the exit status."""
    for output in outputs:
        if output.fd == 2:
            output.flush(FLUSH_TIMEOUT)  # pyvmm's messages as well
        lost = output.give_up() if output.pending else 0
        if lost:
            try_print_message(f"{output.name}: {lost} bytes were not read and are lost")
        if output.error is not None and not output.error_reported and output.error.errno != errno.EPIPE:
            report_lost(output, output.error)
        if output.error is not None and status == 0:
            status = status_of(output.error)
        elif lost and status == 0:
            status = 1
    return status


def try_print_message(text: str) -> None:
    """Print one line on stderr."""
    with contextlib.suppress(OSError):
        where.print_message(text)


def report_lost(output: Output, error: OSError) -> None:
    """Print the message about a failure that did not end the machine. Inside the emulated host standard streams are
    pipes to the outer side, which reports the failure itself.
    """
    if not (inside() and output.fd in (1, 2)):
        try_print_message(f"{output.name}: {error.strerror}; the rest is lost")


def report_ended(output: Output, error: OSError) -> None:
    """Print the message about a failure that ended the machine. For the emulated host the outer side prints it."""
    if not inside():
        try_print_message(ended_text(output, error))
