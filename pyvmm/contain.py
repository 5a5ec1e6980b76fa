"""Containment: an unexpected exception on a path that a guest reaches fails that access, and does not end the VMM.

Only `GuestError` should leave guest-facing code. Any other exception is a bug of ours, and a guest must not be able
to end the machine through it. So each entry that a guest reaches catches it once, in its outermost function:

    port, MMIO   reads as all ones, a write is ignored (IoMap)     hypercall   a status (Hypercalls.call)
    MSR          #GP in the guest (Hardware)                       message     dropped (Vmbus)
    packet, timer or signal of a channel   the channel is broken until the guest opens it anew (Channel)
    other work on the loop that acts on guest state                dropped

Each is counted and traced, and reported on stderr with its traceback the first time that it happens at a place. Tests
set `strict`, which lets the exception pass.

Start, reset and set-up of the machine contain nothing: an exception there ends it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pyvmm.errors import PyvmmError
from pyvmm.trace import event

P = ParamSpec("P")
R = TypeVar("R")

exception = event("contain.exception", "{where}: {error}")

strict = bool(os.environ.get("PYVMM_STRICT"))
"""Let exceptions pass, so that tests fail on them."""

REPORT_LIMIT = 10
"""Most places reported on stderr; each takes a screen, and all of them fit into a pipe that is not read."""

counts: Counter[str] = Counter()
"""Contained exceptions by entry. The code names the entries, which bounds this."""

_reported: set[tuple[str, int, str]] = set()  # file, line and class of the exceptions reported


def contain(where: str, error: Exception) -> None:
    """Count, trace and report `error`, which left guest-facing code at the entry `where`. For `except` clauses.

    Raises `error` again if `strict`.
    """
    if strict:
        raise error
    counts[where] += 1
    if exception.on:
        exception(where, repr(error))
    place = _place(error)
    if place in _reported or len(_reported) >= REPORT_LIMIT:
        return
    _reported.add(place)
    _print_report(f"{where}: unexpected error, the machine continues", error)


def contained(where: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Decorate an entry that returns nothing, so that exceptions which leave it are contained."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                contain(where, error)
                return None

        return run

    return decorate


def report(where: str, error: BaseException) -> None:
    """Report `error`, which ends the machine, on stderr with its traceback."""
    _print_report(f"{where}: unexpected error, please report it", error)


def _place(error: Exception) -> tuple[str, int, str]:
    """Return the place where the exception was raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    name = type(error).__name__
    return ("", 0, name) if at is None else (at.tb_frame.f_code.co_filename, at.tb_lineno, name)


def _print_report(head: str, error: BaseException) -> None:
    text = f"pyvmm: {head}\n"
    if isinstance(error, PyvmmError):  # KVM or the host refused: its text suffices
        text += f"  {error}\n"
    else:
        import traceback  # costs a millisecond, too much for each start of the command line

        text += "".join(traceback.format_exception(error))
    from pyvmm.guest_text import clean

    shown = clean(text)  # an error may quote the guest
    try:
        sys.stderr.write(shown.replace("\n", "\r\n" if sys.stderr.isatty() else "\n"))
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # stderr is closed or full: the count and the trace have it
