"""The user engine: Hyper-V in Python, on any KVM.

MSRs     an MSR filter denies the whole synthetic range, so that every access is an exit, handled here.
Calls    enabling HYPERCALL writes code into the guest's page whose OUT is an exit; registers are read and set.
SINTs    KVM_SIGNAL_MSI with the vector in the guest's SINT register.
AutoEOI  injected past the local APIC (`auto_eoi`); guests are told not to use it (cpuid.Hint.AUTO_EOI_DEPRECATED).

KVM has none of these registers: their whole state is here, in plain objects.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.address_map import LOCAL_APIC
from pyvmm.errors import GuestError, GuestMemoryError, GuestProtocolError, HostError
from pyvmm.hyperv import cpuid, hypercall
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.auto_eoi import AutoEoi
from pyvmm.hyperv.clock import APIC_HZ, ReferenceClock
from pyvmm.hyperv.engine import Engine
from pyvmm.hyperv.enlightenments import DEFAULT
from pyvmm.hyperv.tlfs import (
    FIRST_MSR,
    MIN_SINT_VECTOR,
    MSR_RANGE,
    SYNIC_VERSION,
    Access,
    Msr,
    PageMsr,
    SintValue,
)
from pyvmm.kvm import Cap, CpuidEntry, Exit, IoOut, MsrRange, Rdmsr, Vcpu, Vm, Wrmsr
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory

_TSC_MSR = 0x10
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
        if invariant_tsc:
            self.offer.access |= Access.TSC_INVARIANT
        self._vm: Vm | None = None
        self._power_on()

    def _power_on(self) -> None:
        self.guest_os_id = 0
        self.hypercall_page = PageMsr(0)
        self.reference_tsc = PageMsr(0)
        self.tsc_invariant_control = 0
        self.vp_assist = [0] * self.vp_count

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
        self._vm = None
        self._power_on()
        self._auto_eoi.reset()
        self.clock.restart()

    def reference_time(self) -> int:
        return self.clock.ticks()

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
            case IoOut(port=hypercall.HYPERCALL_PORT):
                if self.hypercall_page.enable:
                    self._call_by_port(vcpu, vp)
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
            # The APIC id of a VP is its index (machine/cpu.py numbers them so).
            try:
                self._vm.signal_msi(LOCAL_APIC.start | (vp & 0xFF) << 12 | vp >> 8 << 40, value.vector)
            except HostError as error:  # EPERM: the guest has switched its APICs off, so none takes it
                if trace.interrupt_lost.on:
                    trace.interrupt_lost(vp, sint, value.vector, str(error))

    def _read(self, vcpu: Vcpu, vp: int, msr: int) -> int:
        state = self.synic.vps[vp]
        match msr:
            case Msr.GUEST_OS_ID:
                return self.guest_os_id
            case Msr.HYPERCALL:
                return self.hypercall_page
            case Msr.VP_INDEX:
                return vp
            case Msr.RESET:
                return 0
            case Msr.TIME_REF_COUNT if self.reference_tsc.enable:
                return self.clock.ticks_at(vcpu.get_msrs([_TSC_MSR])[_TSC_MSR])
            case Msr.TIME_REF_COUNT:
                return self.clock.ticks()
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
            case Msr.TSC_INVARIANT_CONTROL if self.offer.access & Access.TSC_INVARIANT:
                return self.tsc_invariant_control
            case _ if Msr.SINT0 <= msr <= Msr.SINT15:
                return state.sints[msr - Msr.SINT0]
            case _ if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL:
                return self.crash.read(msr)
            case _:
                raise GuestProtocolError("no such synthetic MSR")

    def _write(self, vcpu: Vcpu, vp: int, msr: int, value: int) -> None:
        match msr:
            case Msr.GUEST_OS_ID:
                self.guest_os_id = value
                if not value:
                    self.hypercall_page = PageMsr(0)
            case Msr.HYPERCALL:
                self._set_hypercall_page(PageMsr(value))
            case Msr.RESET:
                if value & 1:
                    self.on_reset()
            case Msr.REFERENCE_TSC:
                page = PageMsr(value)
                if page.enable:
                    tsc = vcpu.get_msrs([_TSC_MSR])[_TSC_MSR]
                    self.memory.write(page.gpa, self.clock.page(tsc, vcpu.tsc_khz * 1000))
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
                self._retries[vp].ask()
            case Msr.TSC_INVARIANT_CONTROL if self.offer.access & Access.TSC_INVARIANT:
                self.tsc_invariant_control = value & 1
            case _ if Msr.SINT0 <= msr <= Msr.SINT15:
                self._set_sint(vp, msr - Msr.SINT0, SintValue(value))
            case _ if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL:
                self._write_crash(msr, value)
            case _:
                raise GuestProtocolError("no such writable synthetic MSR")

    def _set_hypercall_page(self, page: PageMsr) -> None:
        if self.hypercall_page.locked:
            return  # until reset
        if page.enable and not self.guest_os_id:
            page = page.replace(enable=0)  # TLFS 3.13: the bit stays clear until GUEST_OS_ID is written
        if page.enable:
            try:
                self.memory.write(page.gpa, hypercall.page_code())
            except GuestMemoryError as error:
                raise GuestProtocolError(f"hypercall page: {error}") from error
        self.hypercall_page = page

    def _set_sint(self, vp: int, sint: int, value: SintValue) -> None:
        if not value.masked and value.vector < MIN_SINT_VECTOR:
            raise GuestProtocolError(f"SINT{sint}: vector {value.vector} is below {MIN_SINT_VECTOR}")
        with self.synic.lock:
            self.synic.vps[vp].sints[sint] = value
        self._retries[vp].ask()
