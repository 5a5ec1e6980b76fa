"""A virtual CPU: running it, stopping it from outside, and the page it shares with the kernel."""

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
    """What the first word says of one byte read from or written to `port`."""
    (key,) = unpack("<Q", pack("<BBHI", direction, 1, port, 1))
    return int(key)


class Switch(Protocol):
    """Something that is on or off, as a trace event is."""

    on: bool


class Vcpu(VcpuState):
    """A vCPU. Made by `Vm.create_vcpu`; one thread runs it, and only that thread touches its state.

    The state (registers, MSRs, APIC, ...) is in `VcpuState`, where this class gets it from.
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
        self.answered: Counter[str] = Counter()  # exits that `run` answered by itself, by their NAME
        self._words = memoryview(self.shared).cast("Q")
        self._polled: dict[int, tuple[Sequence[int], Switch]] = {}
        self._spills: dict[tuple[int, int], tuple[int, Switch]] = {}  # by exit reason and the exit's first word

    def close(self) -> None:
        """Unmap and close. Not while a thread runs it."""
        if not self.closed:
            self.sync.release()
            self._words.release()
            with suppress(BufferError):  # someone keeps a view of a register: then it goes when the view does
                self.shared.close()
        super().close()

    def run(self) -> Exit:
        """Run the guest until it needs us. A signal or `immediate_exit` comes back as Interrupted.

        An exit that asks for something is to be answered by its methods before the next `run`.
        """
        fd = self._fd
        try:
            fcntl.ioctl(fd, _RUN)
            while self._answered():
                fcntl.ioctl(fd, _RUN)
        except (InterruptedError, BlockingIOError):
            return INTERRUPTED
        except ValueError:
            raise HostError(f"{self.where} is closed") from None
        except OSError as error:
            raise KvmError(Op.RUN, self.where, "", error.errno or 0) from None
        return decode(self.shared)

    def _answered(self) -> bool:
        """Answer an exit that needs no `Exit`, and say so: see `answer_polls` and `spill_writes`."""
        words, reason = self._words, self.shared[_REASON_AT]
        what = words[_EXIT_AT]
        if reason == _IO and what in self._polled:
            answer, unless = self._polled[what]
            value = answer[0]  # once: its owner is on another thread
            if not value or unless.on:
                return False
            self.shared[PIO_PAGE_OFFSET] = value
            self.answered["IoIn"] += 1
            return True
        if (reason, what) not in self._spills:
            return False
        addr, unless = self._spills[reason, what]
        pio = reason == _IO
        if not pio and words[_LENGTH_AT] & _LENGTH_MASK != _ONE_BYTE_WRITTEN:
            return False
        byte = self.shared[PIO_PAGE_OFFSET if pio else _MMIO_DATA_AT]
        if unless.on or not self._vm.spill(addr, byte, pio=pio):
            return False
        self.answered["IoOut" if pio else "MmioWrite"] += 1
        return True

    def answer_polls(self, port: int, answer: Sequence[int], unless: Switch) -> None:
        """Let `run` answer single-byte reads of `port` by itself with `answer[0]`, while that is not 0.

        For a status register that a guest reads over and over: the way through `Exit` and its handler costs several
        times as much. The owner of `answer` changes it as the register changes; reading must have no side effect.
        While `unless` is on, such reads are exits as all others.
        """
        self._polled[_port_key(_IN, port)] = answer, unless

    def spill_writes(self, addr: int, unless: Switch, *, pio: bool = False) -> None:
        """Let `run` take single-byte writes to a coalesced address by itself when KVM's queue is full: they, and what
        is in the queue, are in the next `Vm.drain_coalesced`. Now and then one is an exit all the same, so that
        somebody drains. While `unless` is on, all are.
        """
        key = (_IO, _port_key(_OUT, addr)) if pio else (_MMIO, addr)
        self._spills[key] = addr, unless

    @property
    def immediate_exit(self) -> bool:
        """Whether the next (or, with a signal, the current) run comes back at once. Any thread may set it.

        It stays set until cleared. A vCPU that is in the guest already notices only after a signal to its
        thread: set this, then signal; so a vCPU just about to enter does not miss it.
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
        """The VM's queued writes: see `Vm.drain_coalesced`."""
        return self._vm.drain_coalesced()

    def _shared(self) -> mmap.mmap:
        if self._fd < 0:
            raise HostError(f"{self.where} is closed")
        return self.shared
