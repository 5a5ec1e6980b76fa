"""The user engine: Hyper-V in Python, on any KVM.

MSRs     an MSR filter denies the whole synthetic range, so that every access is an exit, handled here.
Calls    enabling HYPERCALL writes code into the guest's page whose OUT is an exit; registers are read and set.
SINTs    KVM_SIGNAL_MSI with the vector in the guest's SINT register; IPI calls likewise.
Timers   a timerfd of each VP in the loop (`stimer`).
APIC     EOI, ICR and TPR by MSR are writes of KVM's x2APIC registers.
AutoEOI  injected past the local APIC (`auto_eoi`); guests are advised against it (cpuid.Hint.AUTO_EOI_DEPRECATED).

KVM has none of these registers: their whole state is here, in plain objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pyvmm.address_map import LOCAL_APIC
from pyvmm.alarm import Alarm
from pyvmm.contain import contained
from pyvmm.errors import GuestError, GuestMemoryError, GuestProtocolError, HostError
from pyvmm.hyperv import cpuid, hypercall
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.auto_eoi import AutoEoi
from pyvmm.hyperv.clock import APIC_HZ, ReferenceClock
from pyvmm.hyperv.engine import Engine
from pyvmm.hyperv.enlightenments import DEFAULT
from pyvmm.hyperv.ipi import IpiCalls
from pyvmm.hyperv.stimer import SyntheticTimers
from pyvmm.hyperv.tlfs import (
    FIRST_MSR,
    MIN_SINT_VECTOR,
    MSR_RANGE,
    SYNIC_VERSION,
    Access,
    Feature,
    Hint,
    MessageType,
    Msr,
    PageMsr,
    SintValue,
)
from pyvmm.kvm import Cap, CpuidEntry, Exit, IoOut, MsrRange, Rdmsr, Vcpu, Vm, Wrmsr
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory

_TSC_MSR = 0x10
_X2APIC_TPR, _X2APIC_EOI, _X2APIC_ICR = 0x808, 0x80B, 0x830
_REENLIGHTENMENT: tuple[int, ...] = (Msr.REENLIGHTENMENT_CONTROL, Msr.TSC_EMULATION_CONTROL, Msr.TSC_EMULATION_STATUS)
_FIRST_STIMER, _LAST_STIMER = int(Msr.STIMER0_CONFIG), int(Msr.STIMER3_COUNT)
_ACCESS: dict[int, Access] = {
    Msr.VP_RUNTIME: Access.VP_RUNTIME,
    Msr.TIME_REF_COUNT: Access.TIME_REF_COUNT,
    Msr.REFERENCE_TSC: Access.REFERENCE_TSC,
    Msr.RESET: Access.RESET,
    Msr.TSC_FREQUENCY: Access.FREQUENCY,
    Msr.APIC_FREQUENCY: Access.FREQUENCY,
    Msr.EOI: Access.APIC,
    Msr.ICR: Access.APIC,
    Msr.TPR: Access.APIC,
    Msr.TSC_INVARIANT_CONTROL: Access.TSC_INVARIANT,
    **dict.fromkeys(_REENLIGHTENMENT, Access.REENLIGHTENMENT),
    **dict.fromkeys(range(_FIRST_STIMER, _LAST_STIMER + 1), Access.SYNTIMER),
}
"""The privilege that each MSR needs. Others exist always; VP_ASSIST_PAGE too, which Linux writes without asking."""
NEEDED = (Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER, Cap.SIGNAL_MSI, Cap.IRQCHIP, Cap.GET_TSC_KHZ)
"""Capabilities that the user engine needs."""


class UserEngine(Engine):
    """The engine in user space. `invariant_tsc`: the host's TSC is stable, so the guest may use it as clocksource."""

    name = "user"

    def __init__(
        self,
        vp_count: int,
        memory: GuestMemory,
        loop: Loop,
        *,
        invariant_tsc: bool = False,
        enlightenments: Iterable[str] = DEFAULT,
    ) -> None:
        super().__init__(vp_count, memory, loop, masks_known=True, enlightenments=enlightenments)
        self.clock = ReferenceClock()
        self._auto_eoi = AutoEoi(vp_count, loop, lambda vp: self.kick(vp))
        self._alarms: list[Alarm] = []
        self._timers: SyntheticTimers | None = None
        if self.offer.access & Access.SYNTIMER:
            # Made here and not for each VM: a confined process may set alarms but make none.
            self._alarms = [Alarm(loop, self._alarm_callback(vp)) for vp in range(vp_count)]
            self._timers = SyntheticTimers(
                vp_count,
                self.clock,
                send=self._send_timer_message,
                interrupt=self._raise,
                set_alarm=lambda vp, when: self._alarms[vp].set(when),
                direct=bool(self.offer.features & Feature.STIMER_DIRECT),
            )
        if self.offer.hints & Hint.CLUSTER_IPI:
            self.hypercalls.ipi = IpiCalls(vp_count, memory, self._raise_all)
        if invariant_tsc:
            self.offer.access |= Access.TSC_INVARIANT
        self._denied = {msr: needed.name for msr, needed in _ACCESS.items() if not self.offer.access & needed}
        self._vm: Vm | None = None
        self._power_on()

    def _power_on(self) -> None:
        self.guest_os_id = 0
        self.hypercall_page = PageMsr(0)
        self.reference_tsc = PageMsr(0)
        self.tsc_invariant_control = 0
        self.vp_assist = [0] * self.vp_count
        self.reenlightenment: dict[int, int] = dict.fromkeys(_REENLIGHTENMENT, 0)

    def setup_vm(self, vm: Vm) -> None:
        self._vm = vm
        vm.enable_cap(Cap.X86_USER_SPACE_MSR, int(self.msr_exits))
        vm.set_msr_filter([MsrRange.deny(FIRST_MSR, MSR_RANGE)])

    def cpuid(self) -> list[CpuidEntry]:
        return cpuid.leaves(self.offer, self.vp_count)

    def setup_vcpu(self, vcpu: Vcpu, vp: int) -> None:
        """Do nothing: this engine needs no state in KVM."""

    def reset(self) -> None:
        super().reset()
        if self._timers is not None:
            self._timers.reset()
        for alarm in self._alarms:
            alarm.set(None)
        self._vm = None
        self._power_on()
        self._auto_eoi.reset()
        self.clock.restart()

    def save(self, vcpu: Vcpu, vp: int) -> object:
        """Do nothing: KVM holds no state of this engine."""

    def restore(self, vcpu: Vcpu, vp: int, saved: object) -> None:
        """Do nothing."""

    def detach(self) -> None:
        self._vm = None
        for alarm in self._alarms:
            alarm.close()

    def attach(self, passed: float) -> None:
        self.clock.shift(round(passed * 1e9))
        for alarm in self._alarms:
            alarm.open()
        if self._timers is not None:
            self._timers.rearm()

    def close(self) -> None:
        for alarm in self._alarms:
            alarm.close()

    def reference_time(self) -> int:
        return self._tapped_time("host", self.clock.ticks())

    def handle(self, vcpu: Vcpu, vp: int, exit: Exit) -> bool:
        match exit:
            case Rdmsr(index=msr) if FIRST_MSR <= msr < FIRST_MSR + MSR_RANGE:
                try:
                    value = self._read(vcpu, vp, msr)
                except GuestError as error:
                    if trace.msr_refused.on:
                        trace.msr_refused(vp, "read", msr, str(error))
                    self.on_msr_refused("msr read", msr, None)
                    exit.fault()
                    return True
                if trace.msr_read.on:
                    trace.msr_read(vp, msr, value)
                exit.reply(value)
                return True
            case Wrmsr(index=msr, value=value) if FIRST_MSR <= msr < FIRST_MSR + MSR_RANGE:
                if trace.msr_write.on:
                    trace.msr_write(vp, msr, value)
                try:
                    self._write(vcpu, vp, msr, value)
                except GuestError as error:
                    if trace.msr_refused.on:
                        trace.msr_refused(vp, "write", msr, str(error))
                    self.on_msr_refused("msr write", msr, value)
                    exit.fault()
                else:
                    exit.ok()
                return True
            case IoOut(port=hypercall.HYPERCALL_PORT, size=width):
                if self.hypercall_page.enable:
                    self._call_by_port(vcpu, vp, width)
                return True
        return False

    def interrupted(self, vcpu: Vcpu, vp: int) -> None:
        self._auto_eoi.inject(vcpu, vp)

    def open_sint(self, vp: int, sint: int) -> None:
        """Do nothing: this engine raises any SINT by its vector."""

    def close_sint(self, vp: int, sint: int) -> None:
        """Do nothing."""

    def interrupt(self, vp: int, sint: int) -> None:
        value = self.synic.vps[vp].sints[sint]
        if value.masked or self._vm is None:
            return
        if value.auto_eoi:
            self._auto_eoi.raise_(vp, value.vector)
        else:
            self._raise(vp, value.vector)

    def _raise(self, vp: int, vector: int) -> None:
        """Raise a fixed, edge-triggered interrupt on a VP. Callable from any thread."""
        vm = self._vm
        if vm is None:
            return
        # The APIC id of a VP is its index (machine/cpu.py numbers them so).
        try:
            vm.signal_msi(LOCAL_APIC.start | (vp & 0xFF) << 12 | vp >> 8 << 40, vector)
        except HostError as error:  # EPERM: the guest has switched its APICs off, so none takes it
            if trace.interrupt_lost.on:
                trace.interrupt_lost(vp, vector, str(error))

    def _raise_all(self, vector: int, vps: Iterable[int]) -> None:
        for vp in vps:
            self._raise(vp, vector)

    def _send_timer_message(self, vp: int, sint: int, payload: bytes, wait: bool) -> bool:
        return self.synic.offer(vp, sint, MessageType.TIMER_EXPIRED, payload, wait=wait)

    @contained("synthetic timer")
    def timers_due(self, vp: int) -> None:
        """Serve the timers of a VP that have expired. On the loop, by the VP's alarm."""
        if self._timers is not None:
            self._timers.due(vp)

    def _alarm_callback(self, vp: int) -> Callable[[], None]:
        return lambda: self.timers_due(vp)

    def _retry(self, vp: int) -> None:
        super()._retry(vp)
        if self._timers is not None:
            self._timers.retry(vp)

    def _check_access(self, msr: int) -> None:
        """Raise GuestProtocolError if `msr` belongs to an enlightenment that is not offered."""
        needed = self._denied.get(msr)
        if needed is not None:
            raise GuestProtocolError(f"not offered: {needed}")

    def _read(self, vcpu: Vcpu, vp: int, msr: int) -> int:
        self._check_access(msr)
        if _FIRST_STIMER <= msr <= _LAST_STIMER and self._timers is not None:
            return self._timers.read(vp, msr - _FIRST_STIMER)
        state = self.synic.vps[vp]
        match msr:
            case Msr.VP_RUNTIME:
                return time.thread_time_ns() // 100
            case Msr.ICR:
                return _xapic_icr(self._read_apic(vcpu, _X2APIC_ICR))
            case Msr.TPR:
                return self._read_apic(vcpu, _X2APIC_TPR)
            case Msr.REENLIGHTENMENT_CONTROL | Msr.TSC_EMULATION_CONTROL | Msr.TSC_EMULATION_STATUS:
                return self.reenlightenment[msr]
            case Msr.GUEST_OS_ID:
                return self.guest_os_id
            case Msr.HYPERCALL:
                return self.hypercall_page
            case Msr.VP_INDEX:
                return vp
            case Msr.RESET:
                return 0
            case Msr.TIME_REF_COUNT if self.reference_tsc.enable:
                return self._tapped_time("msr", self.clock.ticks_at(vcpu.get_msrs([_TSC_MSR])[_TSC_MSR]))
            case Msr.TIME_REF_COUNT:
                return self._tapped_time("msr", self.clock.ticks())
            case Msr.REFERENCE_TSC:
                return self.reference_tsc
            case Msr.TSC_FREQUENCY:
                return vcpu.tsc_khz * 1000
            case Msr.APIC_FREQUENCY:
                return APIC_HZ
            case Msr.VP_ASSIST_PAGE:
                return self.vp_assist[vp]
            case Msr.SCONTROL:
                return state.control
            case Msr.SVERSION:
                return SYNIC_VERSION
            case Msr.SIEFP:
                return state.siefp
            case Msr.SIMP:
                return state.simp
            case Msr.EOM:
                return 0
            case Msr.TSC_INVARIANT_CONTROL:
                return self.tsc_invariant_control
            case _ if Msr.SINT0 <= msr <= Msr.SINT15:
                return state.sints[msr - Msr.SINT0]
            case _ if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL and self.offer.features & Feature.CRASH_MSRS:
                return self.crash.read(msr)
            case _:
                raise GuestProtocolError("no such synthetic MSR")

    def _write(self, vcpu: Vcpu, vp: int, msr: int, value: int) -> None:
        self._check_access(msr)
        if _FIRST_STIMER <= msr <= _LAST_STIMER and self._timers is not None:
            if self.reference_tsc.enable and self.clock.may_stray:
                self.clock.follow(vcpu.get_msrs([_TSC_MSR])[_TSC_MSR])
            self._timers.write(vp, msr - _FIRST_STIMER, value)
            return
        match msr:
            case Msr.EOI:
                self._write_apic(vcpu, _X2APIC_EOI, 0)
            case Msr.ICR:
                self._write_apic(vcpu, _X2APIC_ICR, _x2apic_icr(value))
            case Msr.TPR:
                self._write_apic(vcpu, _X2APIC_TPR, value & 0xFF)
            case Msr.REENLIGHTENMENT_CONTROL | Msr.TSC_EMULATION_CONTROL:
                self.reenlightenment[msr] = value
            case Msr.TSC_EMULATION_STATUS if not value:  # the guest says that it emulates no longer
                self.reenlightenment[msr] = 0
            case Msr.GUEST_OS_ID:
                self.guest_os_id = value
                if not value:
                    self.hypercall_page = PageMsr(0)
            case Msr.HYPERCALL:
                self._set_hypercall_page(vcpu, PageMsr(value))
            case Msr.RESET:
                if value & 1:
                    self.on_reset()
            case Msr.REFERENCE_TSC:
                page = PageMsr(value)
                if page.enable:
                    tsc = vcpu.get_msrs([_TSC_MSR])[_TSC_MSR]
                    self._write_tsc_page(page.gpa, self.clock.page(tsc, vcpu.tsc_khz * 1000))
                self.reference_tsc = page
            case Msr.VP_ASSIST_PAGE:
                # Linux writes it without asking whether it is there; nothing in it is used without further hints.
                self.vp_assist[vp] = value
            case Msr.SCONTROL:
                with self.synic.lock:
                    self.synic.vps[vp].control = value
                self._retries[vp].ask()
            case Msr.SIEFP:
                self.synic.set_page(vp, "siefp", value)
            case Msr.SIMP:
                self.synic.set_page(vp, "simp", value)
                self._retries[vp].ask()
            case Msr.EOM:
                if trace.eom.on:
                    trace.eom(vp)
                self._eoms[vp].ask()
            case Msr.TSC_INVARIANT_CONTROL:
                self.tsc_invariant_control = value & 1
            case _ if Msr.SINT0 <= msr <= Msr.SINT15:
                self._set_sint(vp, msr - Msr.SINT0, SintValue(value))
            case _ if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL and self.offer.features & Feature.CRASH_MSRS:
                self._write_crash(msr, value)
            case _:
                raise GuestProtocolError("no such writable synthetic MSR")

    def _write_tsc_page(self, gpa: int, page: bytes) -> None:
        if self.taps.clock.on:
            self.taps.clock.cross("out", page, {"what": "page"}, lambda item: self.memory.write(gpa, item.data))
        else:
            self.memory.write(gpa, page)

    def _read_apic(self, vcpu: Vcpu, msr: int) -> int:
        """Read an x2APIC register. Raises GuestProtocolError in xAPIC mode, where KVM has no such registers."""
        try:
            return vcpu.get_msrs([msr])[msr]
        except HostError as error:
            raise GuestProtocolError(f"the local APIC is not in x2APIC mode: {error}") from error

    def _write_apic(self, vcpu: Vcpu, msr: int, value: int) -> None:
        try:
            vcpu.set_msrs({msr: value})
        except HostError as error:
            raise GuestProtocolError(f"the local APIC is not in x2APIC mode: {error}") from error

    def _set_hypercall_page(self, vcpu: Vcpu, page: PageMsr) -> None:
        if self.hypercall_page.locked:
            return  # until reset
        if page.enable and not self.guest_os_id:
            page = page.replace(enable=0)  # TLFS 3.13: the bit stays clear until GUEST_OS_ID is written
        if page.enable:
            try:
                code = hypercall.page_code(long_mode=hypercall.is_long_mode(vcpu.sregs))
                self.memory.write(page.gpa, code)
            except GuestMemoryError as error:
                raise GuestProtocolError(f"hypercall page: {error}") from error
        self.hypercall_page = page

    def _set_sint(self, vp: int, sint: int, value: SintValue) -> None:
        if not value.masked and value.vector < MIN_SINT_VECTOR:
            raise GuestProtocolError(f"SINT{sint}: vector {value.vector} is below {MIN_SINT_VECTOR}")
        with self.synic.lock:
            self.synic.vps[vp].sints[sint] = value
        self._retries[vp].ask()


def _x2apic_icr(value: int) -> int:
    """Convert the ICR of an xAPIC, with the destination in bits 56 to 63, to that of an x2APIC: 32 to 63."""
    return value & 0xFFFFFFFF | value >> 56 << 32


def _xapic_icr(value: int) -> int:
    """Convert the ICR of an x2APIC to that of an xAPIC; destinations above 255 do not fit."""
    return value & 0xFFFFFFFF | (value >> 32 & 0xFF) << 56
