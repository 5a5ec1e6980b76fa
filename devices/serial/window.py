"""The serial port's MMIO registers, beside its I/O ports: a guest reads the line status there without an exit.

Linux's console reads the line status before each byte it sends, its interrupt handler three registers for each
sixteen. From a port that is an exit to this process and back, four times the cost of the byte itself, which KVM only
queues. Here it is a read of read-only memory:

          BASE  PAGE                          EARLY
           | RBR | IER IIR LCR MCR LSR MSR SCR  |  -  IER IIR LCR MCR LSR MSR SCR |
    -------+-----+------------------------------+---------------------------------+---
    nothing mapped | read-only memory: writes exit, or are queued;
    all exit       | reads return what `show` stored

Reading RBR takes a byte from the queue, so it must exit, and the port straddles two pages. Reading the others has no
side effects at a port with a window, not even for IIR: an empty transmitter keeps its interrupt pending while it is
enabled (Linux's driver sends until it has no more, and disables it then). Linux's early console maps only one page
(FIX_EARLYCON_MEM_BASE): for it the registers are repeated at EARLY, whole in that page; it never reads RBR.

Linux gets BASE from ACPI, and the console's two addresses on its command line: `console=uart8250,mmio,BASE` means the
port which the 8250 driver finds there later, as ttyS0. The I/O ports work, too, for `console=ttyS0` and for other
systems.

Source: Linux drivers/tty/serial/8250/8250_early.c, 8250_pnp.c; drivers/tty/serial/earlycon.c, earlycon_map.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm import address_map

SIZE = 8  # bytes; a register each, as on the ports
_EARLY_OFFSET = 0x100


class Window(NamedTuple):
    """The address of one port: the gpa of its page. RBR, register 0, is alone in the page before."""

    page: int

    @property
    def base(self) -> int:
        return self.page - 1

    @property
    def early(self) -> int:
        return self.page + _EARLY_OFFSET


CONSOLE = Window(address_map.CONSOLE_WINDOW.start)
AGENT = Window(address_map.AGENT_WINDOW.start)


def show(page: memoryview, registers: bytes) -> None:
    """Store the current values of registers 1 to 7 into a port's page, for both windows."""
    page[: SIZE - 1] = page[_EARLY_OFFSET + 1 : _EARLY_OFFSET + SIZE] = registers
