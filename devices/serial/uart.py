"""The serial port: a 16550A UART with eight one-byte registers. Its transmitter takes no time, so it is always empty;
while the host is behind, its interrupt is withheld (`hold`).

Source: National Semiconductor PC16550D data sheet; Linux drivers/tty/serial/8250/8250_port.c for the driver's probe.

Linux recognises the type at boot: the low four bits of IER keep what is written and the others do not, MCR's
loopback shows RTS and OUT2 as CTS and DCD, IIR shows both FIFO bits after FCR's enable bit, and no EFR, 64-byte FIFO
or UUE bit exists. On opening the port it tests that setting IER's transmitter bit while the transmitter is empty
interrupts *again*; a UART that does not is polled by a timer from then on.

       host --receive()--> queue --while RTS--> FIFO (16) --RBR--> guest
       host <--output()-----------------------------------THR----- guest
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from pyvmm.devices.serial.window import show
from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

irq_level = event("serial.irq", "{name} level {level} iir {iir:#x}")
overflow = event("serial.queue_full", "{name} {dropped} bytes from the host dropped")
device_view(DeviceView(("serial",)))

FIFO_SIZE = 16
RECEIVE_LIMIT = 1 << 20
"""Limit of bytes queued by the host: large enough for a pasted script or a piped file, and it bounds the memory."""
IER_SUPPRESS_AFTER = 4
"""Redundant writes (0 to an IER that is 0) in a row after which they are suppressed: a console writes one each line.
A driver that probes for the port writes fewer, and enabling the suppression in KVM would cost it more than it saves.
"""


class Register(IntEnum):
    """Offsets. The first two are the divisor while LCR.DLAB is set; FCR is the write side of IIR."""

    DATA = 0
    IER = 1
    IIR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCRATCH = 7


IER_RECEIVE, IER_TRANSMIT, IER_LINE, IER_MODEM, IER_MASK = 1, 2, 4, 8, 0x0F
IIR_MODEM, IIR_NONE, IIR_TRANSMIT, IIR_RECEIVE, IIR_LINE, IIR_TIMEOUT, IIR_FIFO = 0, 1, 2, 4, 6, 12, 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE, FCR_CLEAR_TRANSMIT = 1, 2, 4
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP, MCR_MASK = 1, 2, 4, 8, 0x10, 0x1F
LSR_READY, LSR_OVERRUN, LSR_BREAK, LSR_THR_EMPTY, LSR_IDLE = 1, 2, 0x10, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
TRIGGER_LEVELS = (1, 4, 8, 14)

_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD
_BREAK = 0x100  # in the queue: a break instead of a byte


class Serial:
    """One port. `irq(level)` is called for each change of the interrupt line, `output(data)` for bytes that the guest
    sent, on the vCPU's thread.

    `page` contains all registers but RBR, so that the guest reads them without an exit (`devices.serial.window`).
    Their reads must have no side effects then: such a port has no MSR delta bits (its lines change in loopback only),
    and keeps break and overrun in LSR until a byte is read.

    `suppress_ier_writes(on)` is called, on the vCPU's thread, to start or stop dropping redundant writes of 0 to IER
    in KVM. Linux's console masks the interrupts around each line: while the port is not open, it
    writes 0 over 0, twice.
    """

    def __init__(
        self,
        irq: Callable[[bool], None],
        output: Callable[[bytes], None],
        *,
        page: memoryview | None = None,
        suppress_ier_writes: Callable[[bool], None] = lambda on: None,
        name: str = "serial",
    ) -> None:
        self.lock = threading.RLock()
        self.name = name
        self.sent = self.received = 0
        self.idle_status = bytearray(1)
        """LSR for the fast path, while reading it has no side effects and no interrupt waits on the output; else 0.

        While Linux prints a console line it polls LSR before each byte. It masks the port's interrupts meanwhile, so
        it does not matter that KVM still has bytes queued (coalesced I/O).
        """
        self._irq = irq
        self._output = output
        self._page = page
        self._suppress_ier_writes = suppress_ier_writes
        self.holding = False  # see `hold`; may be set without the lock, and then takes effect with the next access
        self._redundant = 0  # writes of 0 to an IER that is 0, in a row; suppressed from IER_SUPPRESS_AFTER on
        self._queue: deque[int] = deque()
        self._level = False
        self._power_on()
        self._update()

    def _power_on(self) -> None:
        self._fifo: deque[int] = deque()
        self._ier = self._fcr = self._lcr = self._mcr = self._scratch = 0
        self._divisor = 12  # 9600 baud; kept for the guest to read, nothing here takes time
        self._lines = _CONNECTED
        self._deltas = 0
        self._overrun = False
        self._transmitted = False  # THR became empty since IIR last said so
        self._end_suppression()

    def reset(self) -> None:
        """Return to power-on state. Bytes that the host queued and the guest did not read stay queued."""
        with self.lock:
            self._power_on()
            self._update()

    # The host's side

    def receive(self, data: bytes) -> int:
        """Queue `data` for the guest, from any thread. Return the number of bytes queued: less if the queue is full.

        The line has hardware flow control: bytes wait here until the guest asserts RTS. Linux does so when the port
        is opened, after clearing the FIFO, so that nothing typed or piped in before is lost.
        """
        with self.lock:
            taken = min(len(data), RECEIVE_LIMIT - len(self._queue))
            self._queue.extend(data[:taken])
            if taken < len(data) and overflow.on:
                overflow(self.name, len(data) - taken)
            self._fill()
            self._update()
        return taken

    def send_break(self) -> None:
        """Queue a break, in order with earlier bytes: Linux's SysRq on a serial console."""
        with self.lock:
            if len(self._queue) < RECEIVE_LIMIT:
                self._queue.append(_BREAK)
            self._fill()
            self._update()

    def hold(self, on: bool) -> None:
        """Withhold the transmitter's interrupt, or no longer, to block a driver that sends on interrupts.

        Nothing else changes for the guest. A kernel's messages are sent by polling LSR, and go on: if LSR showed a
        busy transmitter, Linux would spin for 10 ms a byte and then send it anyway.
        """
        with self.lock:
            self.holding = on
            self._update()

    @property
    def queued(self) -> int:
        """Return the number of bytes from the host that the guest has not read."""
        return len(self._queue) + len(self._fifo)

    # The guest's side

    def write_many(self, data: bytes) -> None:
        """Handle bytes written to the data port in a row: a string instruction, or coalesced I/O. Takes the lock."""
        with self.lock:
            if self._lcr & LCR_DLAB or self._mcr & MCR_LOOP:
                for value in data:
                    self.write(Register.DATA, 1, value)
                return
            self._transmit(data)
            if self._ier & IER_TRANSMIT:
                self._update()

    def read(self, offset: int, size: int) -> int:
        """Read one register; wider reads return its byte only."""
        match offset:
            case Register.DATA if self._lcr & LCR_DLAB:
                return self._divisor & 0xFF
            case Register.DATA:
                return self._read_data()
            case Register.IER:
                return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
            case Register.IIR:
                source = self._source()
                if source == IIR_TRANSMIT:
                    self._transmitted = False
                    self._update()
                return self._iir(source)
            case Register.LCR:
                return self._lcr
            case Register.MCR:
                return self._mcr
            case Register.LSR:
                return self._read_lsr()
            case Register.MSR:
                value = self._lines | self._deltas
                self._deltas = 0
                self._update()
                return value
            case Register.SCRATCH:
                return self._scratch
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one register; wider writes use the low byte only."""
        value &= 0xFF
        match offset:
            case Register.DATA if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            case Register.DATA if self._mcr & MCR_LOOP:
                self._loop_back(value)
            case Register.DATA:
                self._transmit(bytes((value,)))
                if not self._ier & IER_TRANSMIT:
                    return  # nothing else has changed, and a console sends byte after byte
            case Register.IER if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            case Register.IER:
                if value & IER_MASK == self._ier:
                    if not value:
                        self._count_redundant()
                    return
                self._end_suppression()
                if value & ~self._ier & IER_TRANSMIT:
                    self._transmitted = True  # the transmitter is empty: enabling its interrupt raises it
                self._ier = value & IER_MASK
            case Register.IIR:
                self._write_fcr(value)
            case Register.LCR:
                if value & LCR_DLAB:
                    self._end_suppression()
                self._lcr = value
            case Register.MCR:
                self._mcr = value & MCR_MASK
                self._set_lines()
                self._fill()
            case Register.SCRATCH:
                self._scratch = value
        self._update()

    def _count_redundant(self) -> None:
        """Count a redundant write: IER was 0 and is 0 again."""
        self._redundant += 1
        if self._redundant == IER_SUPPRESS_AFTER:
            self._suppress_ier_writes(True)

    def _end_suppression(self) -> None:
        """End the suppression of redundant IER writes: IER is not 0, or its address is now the divisor's."""
        zeroes, self._redundant = self._redundant, 0
        if zeroes >= IER_SUPPRESS_AFTER:
            self._suppress_ier_writes(False)

    # Registers

    def _read_data(self) -> int:
        value = self._fifo.popleft() & 0xFF if self._fifo else 0
        if self._page is not None:
            self._overrun = False
        if not self._fifo:
            self._fill()
        self._update()
        return value

    def _read_lsr(self) -> int:
        value = self._peek_lsr()
        if self._page is None:
            self._overrun = False
            if self._fifo:
                self._fifo[0] &= ~_BREAK
            self._update()
        return value

    def _peek_lsr(self) -> int:
        return self._line_status() | LSR_THR_EMPTY | LSR_IDLE | (LSR_READY if self._fifo else 0)

    def _line_status(self) -> int:
        broken = LSR_BREAK if self._fifo and self._fifo[0] & _BREAK else 0
        return broken | (LSR_OVERRUN if self._overrun else 0)

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE:
            value |= FCR_CLEAR_RECEIVE | FCR_CLEAR_TRANSMIT  # both FIFOs empty when the mode changes
        if value & FCR_CLEAR_RECEIVE:
            self._fifo.clear()
        self._fcr = value & 0xC1 if value & FCR_ENABLE else 0
        self._fill()

    def _set_lines(self) -> None:
        """Set the modem lines: the cable's, or in loopback our own outputs. Changes set the delta bits."""
        lines = _CONNECTED
        if self._mcr & MCR_LOOP:
            pairs = ((MCR_DTR, MSR_DSR), (MCR_RTS, MSR_CTS), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            lines = sum(status for control, status in pairs if self._mcr & control)
        changed = lines ^ self._lines
        if self._page is None:
            self._deltas |= changed >> 4 & ~(MSR_RI >> 4)
            if self._lines & ~lines & MSR_RI:
                self._deltas |= MSR_RI >> 4  # ring indicator counts its trailing edge only
        self._lines = lines

    # Data

    def _room(self) -> int:
        return (FIFO_SIZE if self._fcr & FCR_ENABLE else 1) - len(self._fifo)

    def _fill(self) -> None:
        if self._mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS:
            for _ in range(min(self._room(), len(self._queue))):
                self._fifo.append(self._queue.popleft())
                self.received += 1

    def _loop_back(self, value: int) -> None:
        if self._room():
            self._fifo.append(value)
        else:
            self._overrun = True
        self._transmitted = True

    def _transmit(self, data: bytes) -> None:
        self.sent += len(data)
        self._transmitted = True
        self._output(data)

    # Interrupts

    def _source(self) -> int:
        """Return the pending interrupt of highest priority, as in IIR."""
        if self._ier & IER_LINE and self._line_status():
            return IIR_LINE
        if self._ier & IER_RECEIVE and self._fifo:
            # Characters take no time here, so a FIFO below its trigger level is a character timeout at once.
            level = TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1
            return IIR_RECEIVE if len(self._fifo) >= level else IIR_TIMEOUT
        if self._ier & IER_TRANSMIT and self._transmitted and not self.holding:
            return IIR_TRANSMIT
        if self._ier & IER_MODEM and self._deltas:
            return IIR_MODEM
        return IIR_NONE

    def _iir(self, source: int) -> int:
        return source | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def _update(self) -> None:
        """Update the registers that the guest reads without an exit, and the interrupt line. As on every PC, OUT2
        enables the interrupt line, and loopback disables it.
        """
        source = self._source()
        if self._page is not None:
            show(
                self._page,
                bytes(
                    (
                        self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier,
                        self._iir(source),
                        self._lcr,
                        self._mcr,
                        self._peek_lsr(),
                        self._lines,
                        self._scratch,
                    )
                ),
            )
        quick = not (self._fifo or self._overrun or self._ier & IER_TRANSMIT)
        self.idle_status[0] = LSR_THR_EMPTY | LSR_IDLE if quick else 0
        level = source != IIR_NONE and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        if level != self._level:
            self._level = level
            if irq_level.on:
                irq_level(self.name, int(level), source)
            self._irq(level)
