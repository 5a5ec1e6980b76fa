"""The state of a vCPU: registers, MSRs, CPUID, APIC, FPU, pending events. All of it can be saved and restored."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from ctypes import addressof, c_uint64
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from pyvmm.errors import HostError
from pyvmm.kvm import abi, structs
from pyvmm.kvm.abi import GuestDebugFlag, MpState, Op
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.cpuid import CpuidEntry, pack_cpuid, read_cpuid
from pyvmm.kvm.handle import Handle, KvmError, enable_cap

if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm

_MSRS_HEAD: Final = Struct("<II")  # nmsrs, pad
_MSR_ENTRY: Final = Struct("<IIQ")  # index, reserved, data
_MSRS_AT_ONCE: Final = 255  # KVM's MAX_IO_MSRS is 256, itself excluded
_XSAVE_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Translation:
    """The translation of a guest virtual address."""

    gpa: int
    writable: bool
    user: bool


class VcpuState(Handle):
    """The state of a vCPU, as a base class of `Vcpu`. Getters return copies: change one and assign it back.

    Only for the thread that runs the vCPU, or while it is known to be stopped: in KVM other threads block until the
    vCPU has left the guest.
    """

    def __init__(self, fd: int, where: str, vm: Vm) -> None:
        super().__init__(fd, where)
        self._vm = vm

    @property
    def regs(self) -> structs.Regs:
        """General registers, RIP, RFLAGS."""
        value = structs.Regs()
        self.ioctl(Op.GET_REGS, value)
        return value

    @regs.setter
    def regs(self, value: structs.Regs) -> None:
        self.ioctl(Op.SET_REGS, value)

    @property
    def sregs(self) -> structs.Sregs:
        """Segments, tables, control registers, EFER."""
        value = structs.Sregs()
        self.ioctl(Op.GET_SREGS, value)
        return value

    @sregs.setter
    def sregs(self, value: structs.Sregs) -> None:
        self.ioctl(Op.SET_SREGS, value)

    @property
    def fpu(self) -> structs.Fpu:
        """x87 and SSE registers. `xsave` holds these and more."""
        value = structs.Fpu()
        self.ioctl(Op.GET_FPU, value)
        return value

    @fpu.setter
    def fpu(self, value: structs.Fpu) -> None:
        self.ioctl(Op.SET_FPU, value)

    @property
    def xsave(self) -> bytes:
        """The XSAVE area, in the host's layout (CPUID leaf 0xD): at least 4096 bytes."""
        size = self._vm.check(Cap.XSAVE2)
        area = bytearray(max(size, _XSAVE_SIZE))
        self.ioctl(Op.GET_XSAVE2 if size > _XSAVE_SIZE else Op.GET_XSAVE, area)
        return bytes(area)

    @xsave.setter
    def xsave(self, value: bytes) -> None:
        size = max(self._vm.check(Cap.XSAVE2), _XSAVE_SIZE)  # KVM reads a full area, whatever the length here
        if len(value) != size:
            raise HostError(f"an XSAVE area of {len(value)} bytes for {self.where}; this host has {size}")
        self.ioctl(Op.SET_XSAVE, bytearray(value), f"{len(value)} bytes")

    @property
    def xcrs(self) -> structs.Xcrs:
        """Extended control registers (XCR0); `nr_xcrs` is 0 on a host without XSAVE, which has none."""
        value = structs.Xcrs()
        self.ioctl(Op.GET_XCRS, value)
        return value

    @xcrs.setter
    def xcrs(self, value: structs.Xcrs) -> None:
        if value.nr_xcrs:  # without XSAVE KVM refuses to set even none
            self.ioctl(Op.SET_XCRS, value)

    @property
    def events(self) -> structs.VcpuEvents:
        """Pending exceptions, interrupts and NMIs."""
        value = structs.VcpuEvents()
        self.ioctl(Op.GET_VCPU_EVENTS, value)
        return value

    @events.setter
    def events(self, value: structs.VcpuEvents) -> None:
        self.ioctl(Op.SET_VCPU_EVENTS, value)

    @property
    def mp_state(self) -> MpState:
        """The multiprocessing state: running, halted, or waiting for INIT or SIPI."""
        value = structs.MpStateStruct()
        self.ioctl(Op.GET_MP_STATE, value)
        return MpState(value.mp_state)

    @mp_state.setter
    def mp_state(self, value: MpState) -> None:
        self.ioctl(Op.SET_MP_STATE, structs.MpStateStruct(int(value)), value.name)

    @property
    def debugregs(self) -> structs.DebugRegs:
        """The guest's own DR0-7."""
        value = structs.DebugRegs()
        self.ioctl(Op.GET_DEBUGREGS, value)
        return value

    @debugregs.setter
    def debugregs(self, value: structs.DebugRegs) -> None:
        self.ioctl(Op.SET_DEBUGREGS, value)

    def get_lapic(self) -> structs.LapicState:
        """The in-kernel local APIC's registers."""
        value = structs.LapicState()
        self.ioctl(Op.GET_LAPIC, value)
        return value

    def set_lapic(self, value: structs.LapicState) -> None:
        """Restore the in-kernel local APIC. After `sregs`, which holds its base and mode."""
        self.ioctl(Op.SET_LAPIC, value)

    @property
    def tsc_khz(self) -> int:
        """Frequency of the guest's TSC, in kHz."""
        return self.ioctl(Op.GET_TSC_KHZ)

    @tsc_khz.setter
    def tsc_khz(self, value: int) -> None:
        self.ioctl(Op.SET_TSC_KHZ, value, f"{value} kHz")

    @property
    def tsc_offset(self) -> int | None:
        """What KVM adds to the host's (scaled) TSC to get the guest's, modulo 2**64; None before Linux 5.16."""
        value = c_uint64()
        request = structs.DeviceAttr(0, abi.VCPU_TSC_CTRL, abi.VCPU_TSC_OFFSET, addressof(value))
        try:
            self.ioctl(Op.GET_DEVICE_ATTR, request, "TSC offset")
        except KvmError as error:
            if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
                return None
            raise
        return value.value

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        word = c_uint64(value)
        request = structs.DeviceAttr(0, abi.VCPU_TSC_CTRL, abi.VCPU_TSC_OFFSET, addressof(word))
        self.ioctl(Op.SET_DEVICE_ATTR, request, f"TSC offset {value:#x}")

    def get_msrs(self, indices: Iterable[int], *, skip_unreadable: bool = False) -> dict[int, int]:
        """Read MSRs. One that cannot be read raises HostError naming it, or is left out."""
        return dict(self._msrs(Op.GET_MSRS, [(index, 0) for index in indices], skip_unreadable))

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Write MSRs in the given order. The first that is refused raises HostError naming it; the ones before
        it are written.
        """
        self._msrs(Op.SET_MSRS, list(values.items()), False)

    def _msrs(self, op: Op, wanted: list[tuple[int, int]], skip: bool) -> list[tuple[int, int]]:
        done: list[tuple[int, int]] = []
        position = 0
        while position < len(wanted):
            part = wanted[position : position + _MSRS_AT_ONCE]
            table = bytearray(_MSRS_HEAD.size + _MSR_ENTRY.size * len(part))
            _MSRS_HEAD.pack_into(table, 0, len(part), 0)
            for n, (index, value) in enumerate(part):
                _MSR_ENTRY.pack_into(table, _MSRS_HEAD.size + n * _MSR_ENTRY.size, index, 0, value)
            count = self.ioctl(op, table, f"{len(part)} MSRs from {part[0][0]:#x}")
            body = memoryview(table)[_MSRS_HEAD.size : _MSRS_HEAD.size + count * _MSR_ENTRY.size]
            done += [(index, value) for index, _, value in _MSR_ENTRY.iter_unpack(body)]
            position += count
            if count < len(part):  # KVM stops at the first it cannot do
                index, value = part[count]
                if not skip:
                    text = f"{index:#x}" if op is Op.GET_MSRS else f"{index:#x} = {value:#x}"
                    raise HostError(
                        f"KVM_{op.name} on {self.where} stopped at MSR {text}: "
                        "this KVM does not have it, CPUID does not offer it, or it does not take that value"
                    )
                position += 1
        return done

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Set the CPUID table. Before the first run, and before MSRs that depend on it."""
        self.ioctl(Op.SET_CPUID2, pack_cpuid(entries), f"{len(entries)} entries")

    def get_cpuid(self) -> list[CpuidEntry]:
        """The vCPU's CPUID table."""
        return read_cpuid(self, Op.GET_CPUID2)

    def supported_hv_cpuid(self) -> list[CpuidEntry]:
        """The Hyper-V CPUID leaves that KVM implements for this vCPU. Needs Cap.HYPERV_CPUID."""
        return read_cpuid(self, Op.GET_SUPPORTED_HV_CPUID)

    def enable_cap(self, cap: Cap, *args: int) -> None:
        """Enable a capability of this vCPU."""
        enable_cap(self, cap, args)

    def set_guest_debug(self, control: GuestDebugFlag, debugreg: Sequence[int] = ()) -> None:
        """Set single stepping and breakpoints of the host; `debugreg` as in the CPU: 0-3 addresses, 7 control."""
        request = structs.GuestDebug(control=int(control))
        request.debugreg[: len(debugreg)] = tuple(debugreg)
        self.ioctl(Op.SET_GUEST_DEBUG, request, f"{control!r}")

    def translate(self, gva: int) -> Translation | None:
        """Walk the guest's page tables for a virtual address; None if it is not mapped."""
        request = structs.TranslationStruct(linear_address=gva)
        self.ioctl(Op.TRANSLATE, request, f"{gva:#x}")
        if not request.valid:
            return None
        return Translation(request.physical_address, bool(request.writeable), bool(request.usermode))

    def nmi(self) -> None:
        """Raise a non-maskable interrupt. From any thread."""
        self.ioctl(Op.NMI)

    def interrupt(self, vector: int) -> None:
        """Inject an interrupt, in a VM without in-kernel irqchip."""
        self.ioctl(Op.INTERRUPT, structs.Interrupt(vector), f"vector {vector}")

    def clock_paused(self) -> None:
        """Tell the guest's watchdog that it was stopped on purpose (KVM_KVMCLOCK_CTRL)."""
        self.ioctl(Op.KVMCLOCK_CTRL)
