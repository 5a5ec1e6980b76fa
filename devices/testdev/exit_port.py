"""The exit port: a write ends the machine, and the value is the exit status. QEMU's isa-debug-exit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.trace import event

written = event("testdev.exit", "value {value:#x}, exit status {status}")


def exit_status(value: int) -> int:
    """Return QEMU's exit status for `value`: odd, so that it is never 0, which a power-off has."""
    return (value << 1 | 1) & 0xFF


class ExitPort:
    """Four ports, of which each ends the machine. `exit(status)` is called on a vCPU's thread."""

    def __init__(self, exit: Callable[[int], None]) -> None:
        self.lock = threading.RLock()
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine."""
        status = exit_status(value)
        if written.on:
            written(value, status)
        self._exit(status)
