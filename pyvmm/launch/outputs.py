"""Standard output and error while a machine runs: written by threads, watched by the loop, waited for at the end.

    how an output ends            the machine          exit status, unless COMMAND's own is not 0
    reader gone (EPIPE)           is ended             141, as a shell shows SIGPIPE
    terminal hung up (EIO)        is ended             129, as a shell shows SIGHUP
    disk full, closed, ...        is ended             1
    reader stops                  the guest waits      that of the end; 1 if output was given up then

After an end that the guest or COMMAND brought about, output is waited for as long as its reader takes, as by any
program; a signal, `quit`, or the time limit cuts that short. After one of those PATIENCE is all there is.
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

PATIENCE = 1.0
"""Seconds that output may take after a requested end: a signal, `quit`, the time limit."""

_LOOK = 0.02
"""Seconds between two checks whether all is written, while the loop serves the monitor."""


class Outputs:
    """Standard output and error of this process."""

    def __init__(self) -> None:
        self.out = Output(1, "standard output")
        self.err = Output(2, "standard error")


@contextlib.contextmanager
def threaded() -> Iterator[Outputs]:
    """Let threads write what goes to standard output and error in the block, `print` included."""
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
            output.flush(PATIENCE)


def _over(output: Output, stream: TextIO) -> TextIO:
    try:
        same = stream.fileno() == output.fd
    except (OSError, ValueError):
        same = False  # a test's
    return output.text(stream) if same else stream


def connect(machine: Machine, port: int, output: Output, failed: Callable[[Output, OSError], None]) -> None:
    """Slow the guest's serial `port` down to the speed of `output`. `failed` is called once, on the loop."""
    slow = machine.throttles.watch(port, lambda: output.level)
    others = output.changed

    def look() -> None:
        if output.error is not None and not output.told:
            output.told = True
            failed(output, output.error)

    def changed() -> None:
        others()
        slow()
        if output.error is not None:
            machine.loop.post(look)

    output.changed = changed
    machine.loop.post(look)  # it may have failed already


def disconnect(outputs: Sequence[Output]) -> None:
    """Stop reporting failures and backlog of `outputs` to the machine's loop, which has ended."""
    for output in outputs:
        output.changed = lambda: None


def drain(machine: Machine, outputs: Sequence[Output], stop: Callable[[], bool], seconds: float | None) -> None:
    """Wait until `outputs` are written, at most `seconds`, or until `stop()`; the loop goes on meanwhile."""
    clock = machine.loop.clock
    until = None if seconds is None else clock() + seconds
    if all(output.flush(_LOOK) for output in outputs):
        return
    while any(output.pending for output in outputs) and not stop() and (until is None or clock() < until):
        machine.loop.step(_LOOK)


def ended_text(output: Output, error: OSError) -> str:
    """The line about an output whose failure ended the machine."""
    if error.errno == errno.EPIPE:
        return f"nobody reads {output.name} any more: the machine was ended"
    return f"{output.name}: {error.strerror}: the machine was ended"


def settle(outputs: Sequence[Output], status: int) -> int:
    """The exit status. Gives up what could not be written, and prints how much that was."""
    for output in outputs:
        if output.fd == 2:
            output.flush(PATIENCE)  # our own lines as well
        lost = output.give_up() if output.pending else 0
        if lost:
            say(f"{output.name}: {lost} bytes were not read and are lost")
        if output.error is not None and not output.told and output.error.errno != errno.EPIPE:
            say_lost(output, output.error)
        if output.error is not None and status == 0:
            status = status_of(output.error)
        elif lost and status == 0:
            status = 1
    return status


def say(text: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError):
        where.say(text)


def say_lost(output: Output, error: OSError) -> None:
    """The line about a failure that did not end the machine. Inside the emulated host standard streams are pipes to
    the outer side, which knows better.
    """
    if not (inside() and output.fd in (1, 2)):
        say(f"{output.name}: {error.strerror}; the rest is lost")


def say_ended(output: Output, error: OSError) -> None:
    """Print the line about a failure that ended the machine. In the emulated host the process outside prints it."""
    if not inside():
        say(ended_text(output, error))
