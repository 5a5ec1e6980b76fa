"""QEMU's pc-testdev: interrupt lines by port, ports and memory that hold what was written, and a page flush.

0x2000 + n   a byte: level of interrupt line n, n to 23
0xe0-0xe3    hold what was written, in any size; 0xe8-0xeb a byte each
0xe4         a gpa: its page leaves the guest's page tables (KVM's nested ones) and comes back at the next access
0xff000000   64 KiB of memory, each access of which is an exit
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.trace import event

page_flushed = event("testdev.flush", "page at {gpa:#x}")

LINES = 24


class InterruptLines:
    """A port for each interrupt line: a write sets its level. `irq(line, level)` is called on a vCPU's thread."""

    def __init__(self, irq: Callable[[int, bool], None]) -> None:
        self.lock = threading.RLock()
        self._irq = irq

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Set a line's level."""
        self._irq(offset, bool(value))


class Scratch:
    """Ports or memory of `size` bytes that hold what was written."""

    def __init__(self, size: int) -> None:
        self.lock = threading.RLock()
        self._data = bytearray(size)

    def reset(self) -> None:
        """Clear all bytes."""
        self._data[:] = bytes(len(self._data))

    def read(self, offset: int, size: int) -> int:
        """Return up to `size` bytes, up to the end."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store up to `size` bytes, up to the end."""
        end = min(offset + size, len(self._data))
        self._data[offset:end] = value.to_bytes(8, "little")[: end - offset]


class PageFlush:
    """Port 0xe4. `flush(gpa)` is called on a vCPU's thread, with the address of a page."""

    def __init__(self, flush: Callable[[int], None]) -> None:
        self.lock = threading.RLock()
        self._flush = flush

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Flush the page that holds the address `value`."""
        if offset == 0 and size == 4:
            gpa = value & ~0xFFF
            if page_flushed.on:
                page_flushed(gpa)
            self._flush(gpa)
