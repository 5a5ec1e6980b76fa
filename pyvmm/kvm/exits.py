"""VM exits: the reason for which KVM_RUN returned, as small objects to match on.

Source: Linux include/uapi/linux/kvm.h, struct kvm_run.

`decode` reads the shared kvm_run page right after KVM_RUN. An exit that asks for something (a port read, an
MSR read, a hypercall) has methods that write the answer into that page; KVM reads it in the next KVM_RUN.
Answer on the vCPU's thread, before it runs again. A read without an answer gives the guest whatever the page held.

    guest: in al, 0x60 --> KVM_RUN returns --> IoIn(port=0x60, size=1) --> .reply(b"\x1c") --> run() --> AL = 0x1c
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from mmap import mmap
from struct import Struct
from typing import Any, ClassVar, Final

from pyvmm.kvm.abi import RUN_EXIT, RUN_EXIT_REASON, ExitReason, HypervExit

_IO: Final = Struct("<BBHIQ")  # direction, size, port, count, data_offset
_MMIO: Final = Struct("<Q8sIB")  # phys_addr, data, len, is_write
_MSR: Final = Struct("<B7xIIQ")  # error, reason, index, data
_MSR_DATA: Final = Struct("<Q")
_MSR_DATA_AT: Final = RUN_EXIT + 16
_MMIO_DATA_AT: Final = RUN_EXIT + 8
_U64: Final = Struct("<Q")
_FAIL_ENTRY: Final = Struct("<QI")
_COUNTED: Final = Struct("<II16Q")  # suberror or type, ndata, data
_DEBUG: Final = Struct("<IIQQQ")
_HYPERV_SYNIC: Final = Struct("<IIIIQQQ")  # type, pad, msr, pad, control, evt_page, msg_page
_HYPERV_HCALL: Final = Struct("<IIQQQQ")  # type, pad, input, result, params[2]
_HYPERV_RESULT_AT: Final = RUN_EXIT + 16
_HYPERCALL: Final = Struct("<Q6QQI")  # nr, args, ret, longmode
_HYPERCALL_RESULT_AT: Final = RUN_EXIT + 56
_TPR: Final = Struct("<QI")
_U32: Final = Struct("<I")
_REASON: Final = Struct("<I")

_MAX_DATA: Final = 16  # words in internal.data and system_event.data


@dataclass(slots=True)
class IoOut:
    """The guest wrote `data` to a port: `count` items of `size` bytes, more than one from REP OUTS."""

    NAME: ClassVar[str] = "IoOut"
    port: int
    size: int
    count: int
    data: bytes


@dataclass(slots=True)
class IoIn:
    """The guest reads `count` items of `size` bytes from a port. Answer with `reply`."""

    NAME: ClassVar[str] = "IoIn"
    port: int
    size: int
    count: int
    _run: mmap = field(repr=False, compare=False)
    _offset: int = field(repr=False, compare=False)

    def reply(self, data: bytes) -> None:
        """Give the guest `data`, exactly size * count bytes."""
        if len(data) != self.size * self.count:
            raise AssertionError(f"reply of {len(data)} bytes to a read of {self.count} x {self.size}")
        self._run[self._offset : self._offset + len(data)] = data


@dataclass(slots=True)
class MmioRead:
    """The guest reads `size` bytes at an address without memory. Answer with `reply`."""

    NAME: ClassVar[str] = "MmioRead"
    gpa: int
    size: int
    _run: mmap = field(repr=False, compare=False)

    def reply(self, data: bytes) -> None:
        """Give the guest `data`, exactly `size` bytes."""
        if len(data) != self.size:
            raise AssertionError(f"reply of {len(data)} bytes to a read of {self.size}")
        self._run[_MMIO_DATA_AT : _MMIO_DATA_AT + len(data)] = data


@dataclass(slots=True)
class MmioWrite:
    """The guest wrote `data` to an address without memory."""

    NAME: ClassVar[str] = "MmioWrite"
    gpa: int
    data: bytes


@dataclass(slots=True)
class Hlt:
    """The guest halted, in a VM without in-kernel APIC (with one, KVM handles HLT)."""

    NAME: ClassVar[str] = "Hlt"


@dataclass(slots=True)
class Shutdown:
    """Triple fault: a real machine would reset now."""

    NAME: ClassVar[str] = "Shutdown"


@dataclass(slots=True)
class FailEntry:
    """The CPU refused to enter the guest; `reason` is the hardware's code."""

    NAME: ClassVar[str] = "FailEntry"
    reason: int
    cpu: int


@dataclass(slots=True)
class InternalError:
    """KVM could not go on, mostly (suberror 1) because it cannot emulate an instruction."""

    NAME: ClassVar[str] = "InternalError"
    suberror: int
    data: tuple[int, ...]

    @property
    def instruction(self) -> bytes:
        """The bytes at RIP, if KVM reports them (emulation failures on newer kernels), else empty."""
        if self.suberror != 1 or len(self.data) < 3 or not self.data[0] & 1:
            return b""
        raw = self.data[1].to_bytes(8, "little") + self.data[2].to_bytes(8, "little")
        return raw[1 : 1 + min(raw[0], 15)]


@dataclass(slots=True)
class SystemEvent:
    """The guest asked KVM for a reset, a shutdown or a crash (`abi.SystemEventType`)."""

    NAME: ClassVar[str] = "SystemEvent"
    type: int
    data: tuple[int, ...]


@dataclass(slots=True)
class Rdmsr:
    """The guest reads an MSR that KVM leaves to user space; `reason` is one `abi.MsrExitReason`."""

    NAME: ClassVar[str] = "Rdmsr"
    index: int
    reason: int
    _run: mmap = field(repr=False, compare=False)

    def reply(self, value: int) -> None:
        """Let RDMSR return `value`."""
        self._run[RUN_EXIT] = 0
        _MSR_DATA.pack_into(self._run, _MSR_DATA_AT, value)

    def fault(self) -> None:
        """Let RDMSR raise #GP."""
        self._run[RUN_EXIT] = 1


@dataclass(slots=True)
class Wrmsr:
    """The guest writes an MSR that KVM leaves to user space. Without an answer the write succeeds."""

    NAME: ClassVar[str] = "Wrmsr"
    index: int
    value: int
    reason: int
    _run: mmap = field(repr=False, compare=False)

    def ok(self) -> None:
        """Let WRMSR succeed."""
        self._run[RUN_EXIT] = 0

    def fault(self) -> None:
        """Let WRMSR raise #GP."""
        self._run[RUN_EXIT] = 1


@dataclass(slots=True)
class HypervSynic:
    """The guest wrote SCONTROL, SIEFP or SIMP (`msr`); holds the values of all three now."""

    NAME: ClassVar[str] = "HypervSynic"
    msr: int
    control: int
    evt_page: int
    msg_page: int


@dataclass(slots=True)
class HypervHcall:
    """A Hyper-V hypercall for user space. `input`: control word; `params`: RDX and R8 (or input and output GPA)."""

    NAME: ClassVar[str] = "HypervHcall"
    input: int
    params: tuple[int, int]
    _run: mmap = field(repr=False, compare=False)

    def reply(self, result: int) -> None:
        """Set the 64-bit result word, status in its low 16 bits. KVM advances RIP in the next KVM_RUN."""
        _U64.pack_into(self._run, _HYPERV_RESULT_AT, result)


@dataclass(slots=True)
class Hypercall:
    """A KVM hypercall for user space, by KVM_CAP_EXIT_HYPERCALL."""

    NAME: ClassVar[str] = "Hypercall"
    number: int
    args: tuple[int, ...]
    long_mode: bool
    _run: mmap = field(repr=False, compare=False)

    def reply(self, result: int) -> None:
        """Set the guest's RAX."""
        _U64.pack_into(self._run, _HYPERCALL_RESULT_AT, result)


@dataclass(slots=True)
class Debug:
    """A breakpoint or single step set by `Vcpu.set_guest_debug`."""

    NAME: ClassVar[str] = "Debug"
    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True)
class IrqWindowOpen:
    """The guest can take an interrupt now; requested by `Vcpu.request_interrupt_window`."""

    NAME: ClassVar[str] = "IrqWindowOpen"


@dataclass(slots=True)
class IoapicEoi:
    """The guest sent the EOI of a level interrupt of a user-space I/O APIC (split irqchip)."""

    NAME: ClassVar[str] = "IoapicEoi"
    vector: int


@dataclass(slots=True)
class TprAccess:
    """The guest accessed the task priority register while TPR reporting is on."""

    NAME: ClassVar[str] = "TprAccess"
    rip: int
    is_write: bool


@dataclass(slots=True)
class Interrupted:
    """KVM_RUN returned because of a signal or `immediate_exit`, or a waiting vCPU got an event. Needs no answer."""

    NAME: ClassVar[str] = "Interrupted"


@dataclass(slots=True)
class Unknown:
    """An exit that this library does not decode; `hardware` is the CPU's own reason if KVM gave none."""

    NAME: ClassVar[str] = "Unknown"
    reason: int
    hardware: int = 0


Exit = (
    IoOut
    | IoIn
    | MmioRead
    | MmioWrite
    | Hlt
    | Shutdown
    | FailEntry
    | InternalError
    | SystemEvent
    | Rdmsr
    | Wrmsr
    | HypervSynic
    | HypervHcall
    | Hypercall
    | Debug
    | IrqWindowOpen
    | IoapicEoi
    | TprAccess
    | Interrupted
    | Unknown
)


def exit_detail(exit: Exit) -> dict[str, Any]:
    """What an exit carries, by name, as numbers, text and lists of numbers; bytes as hexadecimal digits."""
    shown = {each.name: getattr(exit, each.name) for each in fields(exit) if each.repr}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in shown.items()}


# These carry nothing, so one object serves all.
HLT: Final = Hlt()
SHUTDOWN: Final = Shutdown()
IRQ_WINDOW_OPEN: Final = IrqWindowOpen()
INTERRUPTED: Final = Interrupted()


def _io(run: mmap) -> Exit:
    direction, size, port, count, offset = _IO.unpack_from(run, RUN_EXIT)
    if direction:
        return IoOut(port, size, count, run[offset : offset + size * count])
    return IoIn(port, size, count, run, offset)


def _mmio(run: mmap) -> Exit:
    gpa, data, size, is_write = _MMIO.unpack_from(run, RUN_EXIT)
    return MmioWrite(gpa, data[:size]) if is_write else MmioRead(gpa, size, run)


def _rdmsr(run: mmap) -> Exit:
    _, reason, index, _ = _MSR.unpack_from(run, RUN_EXIT)
    return Rdmsr(index, reason, run)


def _wrmsr(run: mmap) -> Exit:
    _, reason, index, value = _MSR.unpack_from(run, RUN_EXIT)
    return Wrmsr(index, value, reason, run)


def _fail_entry(run: mmap) -> Exit:
    return FailEntry(*_FAIL_ENTRY.unpack_from(run, RUN_EXIT))


def _internal_error(run: mmap) -> Exit:
    suberror, count, *data = _COUNTED.unpack_from(run, RUN_EXIT)
    return InternalError(suberror, tuple(data[: min(count, _MAX_DATA)]))


def _system_event(run: mmap) -> Exit:
    # Before Linux 5.19 there is no ndata but padding, and one word of flags.
    type_, count, *data = _COUNTED.unpack_from(run, RUN_EXIT)
    return SystemEvent(type_, tuple(data[: min(max(count, 1), _MAX_DATA)]))


def _debug(run: mmap) -> Exit:
    exception, _, pc, dr6, dr7 = _DEBUG.unpack_from(run, RUN_EXIT)
    return Debug(exception, pc, dr6, dr7)


def _hyperv(run: mmap) -> Exit:
    (kind,) = _U32.unpack_from(run, RUN_EXIT)
    if kind == HypervExit.SYNIC:
        _, _, msr, _, control, evt_page, msg_page = _HYPERV_SYNIC.unpack_from(run, RUN_EXIT)
        return HypervSynic(msr, control, evt_page, msg_page)
    if kind == HypervExit.HCALL:
        _, _, control, _, first, second = _HYPERV_HCALL.unpack_from(run, RUN_EXIT)
        return HypervHcall(control, (first, second), run)
    return Unknown(ExitReason.HYPERV, kind)


def _hypercall(run: mmap) -> Exit:
    number, *args, _, long_mode = _HYPERCALL.unpack_from(run, RUN_EXIT)
    return Hypercall(number, tuple(args), bool(long_mode), run)


def _tpr_access(run: mmap) -> Exit:
    rip, is_write = _TPR.unpack_from(run, RUN_EXIT)
    return TprAccess(rip, bool(is_write))


def _unknown(run: mmap) -> Exit:
    return Unknown(ExitReason.UNKNOWN, _U64.unpack_from(run, RUN_EXIT)[0])


_DECODERS: Final[dict[int, Callable[[mmap], Exit]]] = {
    ExitReason.UNKNOWN: _unknown,
    ExitReason.IO: _io,
    ExitReason.HYPERCALL: _hypercall,
    ExitReason.DEBUG: _debug,
    ExitReason.HLT: lambda run: HLT,
    ExitReason.MMIO: _mmio,
    ExitReason.IRQ_WINDOW_OPEN: lambda run: IRQ_WINDOW_OPEN,
    ExitReason.SHUTDOWN: lambda run: SHUTDOWN,
    ExitReason.FAIL_ENTRY: _fail_entry,
    ExitReason.INTR: lambda run: INTERRUPTED,
    ExitReason.TPR_ACCESS: _tpr_access,
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda run: IoapicEoi(run[RUN_EXIT]),
    ExitReason.HYPERV: _hyperv,
    ExitReason.X86_RDMSR: _rdmsr,
    ExitReason.X86_WRMSR: _wrmsr,
}


def decode(run: mmap) -> Exit:
    """The exit that the kvm_run page describes."""
    (reason,) = _REASON.unpack_from(run, RUN_EXIT_REASON)
    decoder = _DECODERS.get(reason)
    return decoder(run) if decoder else Unknown(reason)
