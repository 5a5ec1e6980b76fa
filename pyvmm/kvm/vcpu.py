"""A virtual CPU: running it, stopping it from another thread, and the kvm_run page that it shares with the kernel."""

from __future__ import annotations

import fcntl
import mmap
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from struct import pack, unpack
from typing import TYPE_CHECKING, Final, Protocol

from pyvmm.errors import HostError
from pyvmm.kvm import abi
from pyvmm.kvm.abi import ExitReason, Op
from pyvmm.kvm.coalesced import CoalescedWrite
from pyvmm.kvm.exits import INTERRUPTED, Exit, decode
from pyvmm.kvm.handle import KvmError
from pyvmm.kvm.state import VcpuState
from pyvmm.kvm.sync import SyncRegs

if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm

_KERNEL_SIGSET_SIZE: Final = 8  # bytes; libc's sigset_t is larger
PIO_PAGE_OFFSET: Final = 4096  # KVM_PIO_PAGE_OFFSET pages into the mapping: where port data is
_REASON_AT: Final = abi.RUN_EXIT_REASON  # a u32; all reasons fit in its first byte
_EXIT_AT: Final = abi.RUN_EXIT // 8  # in words of 64 bits. Port: direction u8, size u8, port u16, count u32; offset
_LENGTH_AT: Final = _EXIT_AT + 2  # MMIO: gpa; data; length u32, is_write u8
_LENGTH_MASK: Final = 0xFF_FFFF_FFFF
_ONE_BYTE_WRITTEN: Final = 1 << 32 | 1
_MMIO_DATA_AT: Final = abi.RUN_EXIT + 8
_IN: Final = 0
_OUT: Final = 1
_RUN: Final = int(Op.RUN)
"""Looked up once, as an enum's member is a call away (3.11), and given to `fcntl.ioctl` without an argument: it would
take a 0 for two kinds of buffers first, and word an exception for each.
"""
_IO: Final = int(ExitReason.IO)
_MMIO: Final = int(ExitReason.MMIO)


def _port_key(direction: int, port: int) -> int:
    """The first word of the exit data for a one-byte read from or write to `port`."""
    (key,) = unpack("<Q", pack("<BBHI", direction, 1, port, 1))
    return int(key)


class Switch(Protocol):
    """An object with an `on` flag, such as a trace event."""

    on: bool


class Vcpu(VcpuState):
    """A vCPU. Created by `Vm.create_vcpu`; one thread runs it, and only that thread touches its state.

    The state (registers, MSRs, APIC, ...) is in the base class `VcpuState`.
    """

    def __init__(self, fd: int, id: int, mmap_size: int, vm: Vm) -> None:
        super().__init__(fd, f"vcpu {id}", vm)
        self.id = id
        try:
            self.shared = mmap.mmap(fd, mmap_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            super().close()
            raise HostError(f"mmap of vcpu {id}'s kvm_run ({mmap_size} bytes): {error.strerror}") from None
        self.sync = SyncRegs(self.shared, vm)
        self.answered: Counter[str] = Counter()  # exits that the fast paths answered, by their NAME
        self._words = memoryview(self.shared).cast("Q")
        self._polled: dict[int, tuple[Sequence[int], Switch]] = {}
        self._overflows: dict[tuple[int, int], tuple[int, Switch]] = {}  # by exit reason and the exit's first word

    def close(self) -> None:
        """Unmap the kvm_run page and close the vCPU. Not while a thread runs it."""
        if not self.closed:
            self.sync.release()
            self._words.release()
            with suppress(BufferError):  # a view of a register still exists: the page is unmapped when the view goes
                self.shared.close()
        super().close()

    def run(self) -> Exit:
        """Run the guest until an exit that user space must handle. A signal or `immediate_exit` gives Interrupted.

        An exit that asks for something must be answered by its methods before the next `run`.
        """
        fd = self._fd
        try:
            fcntl.ioctl(fd, _RUN)
            while self._run_fastpath():
                fcntl.ioctl(fd, _RUN)
        except (InterruptedError, BlockingIOError):
            return INTERRUPTED
        except ValueError:
            raise HostError(f"{self.where} is closed") from None
        except OSError as error:
            raise KvmError(Op.RUN, self.where, "", error.errno or 0) from None
        return decode(self.shared)

    def _run_fastpath(self) -> bool:
        """Handle the exit on a fast path, without an `Exit` object, if it has one; returns whether it has."""
        words, reason = self._words, self.shared[_REASON_AT]
        what = words[_EXIT_AT]
        if reason == _IO and what in self._polled:
            answer, disabled_by = self._polled[what]
            value = answer[0]  # once: its owner is on another thread
            if not value or disabled_by.on:
                return False
            self.shared[PIO_PAGE_OFFSET] = value
            self.answered["IoIn"] += 1
            return True
        if (reason, what) not in self._overflows:
            return False
        addr, disabled_by = self._overflows[reason, what]
        pio = reason == _IO
        if not pio and words[_LENGTH_AT] & _LENGTH_MASK != _ONE_BYTE_WRITTEN:
            return False
        byte = self.shared[PIO_PAGE_OFFSET if pio else _MMIO_DATA_AT]
        if disabled_by.on or not self._vm.drain_overflow(addr, byte, pio=pio):
            return False
        self.answered["IoOut" if pio else "MmioWrite"] += 1
        return True

    def add_poll_fastpath(self, port: int, answer: Sequence[int], disabled_by: Switch) -> None:
        """Register a fast path for polled reads: `run` answers one-byte reads of `port` with `answer[0]`, unless it
        is 0.

        For a status register that a guest polls: decoding an `Exit` and calling its handler costs several times as
        much. The owner of `answer` updates it whenever the register changes; reading must have no side effect.
        While `disabled_by` is on, such reads are ordinary exits.
        """
        self._polled[_port_key(_IN, port)] = answer, disabled_by

    def add_overflow_fastpath(self, addr: int, disabled_by: Switch, *, pio: bool = False) -> None:
        """Register a fast path for one-byte writes to a coalesced address that find KVM's ring full.

        `run` empties the ring into the overflow buffer and adds the write; `Vm.drain_coalesced` returns them later.
        When the buffer is full, the write is an ordinary exit, whose handler drains. While `disabled_by` is on, all
        are.
        """
        key = (_IO, _port_key(_OUT, addr)) if pio else (_MMIO, addr)
        self._overflows[key] = addr, disabled_by

    @property
    def immediate_exit(self) -> bool:
        """Whether the next (or, with a signal, the current) run returns at once. Any thread may set it.

        It stays set until cleared. A vCPU that is in the guest already notices only after a signal to its
        thread: set this first, then signal, so that a vCPU about to enter the guest does not miss it.
        """
        return bool(self._shared()[abi.RUN_IMMEDIATE_EXIT])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._shared()[abi.RUN_IMMEDIATE_EXIT] = int(value)

    @property
    def request_interrupt_window(self) -> bool:
        """Whether to exit as soon as the guest can take an interrupt (only without in-kernel irqchip)."""
        return bool(self._shared()[abi.RUN_REQUEST_INTERRUPT_WINDOW])

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self._shared()[abi.RUN_REQUEST_INTERRUPT_WINDOW] = int(value)

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether the guest could take an interrupt at the last exit."""
        return bool(self._shared()[abi.RUN_READY_FOR_INTERRUPT_INJECTION])

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block these signals, and only these, while in KVM_RUN; None leaves the thread's own mask."""
        if blocked is None:
            self.ioctl(Op.SET_SIGNAL_MASK)
            return
        bits = 0
        for number in blocked:
            bits |= 1 << (number - 1)
        names = ",".join(signal.Signals(n + 1).name for n in range(31) if bits >> n & 1)
        self.ioctl(Op.SET_SIGNAL_MASK, bytearray(pack("<IQ", _KERNEL_SIGSET_SIZE, bits)), names)

    def drain_coalesced(self) -> list[CoalescedWrite]:
        """Remove and return the VM's queued writes: see `Vm.drain_coalesced`."""
        return self._vm.drain_coalesced()

    def _shared(self) -> mmap.mmap:
        if self._fd < 0:
            raise HostError(f"{self.where} is closed")
        return self.shared
