"""Tells at a machine's end which of its fault rules did nothing: no fault that was asked for is missed silently."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.machine import Machine

LINES_LIMIT = 20
"""Lines printed. A file of a thousand rules would push everything else off the screen."""


def report_faults(machine: Machine) -> None:
    """Print a line for each fault rule that was never hit, or whose action had no effect."""
    if machine.taps.rules is None:
        return
    from pyvmm.faults import FaultSet
    from pyvmm.launch.where import print_message

    lines = FaultSet.of(machine).report()
    if len(lines) > LINES_LIMIT:
        lines[LINES_LIMIT:] = [f"{len(lines) - LINES_LIMIT} more fault rules were never hit, or had no effect"]
    with contextlib.suppress(OSError):
        for line in lines:
            print_message(line)
