"""The kernel engine: KVM's own Hyper-V support, and the parts that it leaves to user space.

Source: Linux arch/x86/kvm/hyperv.c, virt/kvm/eventfd.c; Documentation/virt/kvm/api.rst 4.94 and 5 (KVM_EXIT_HYPERV).

    KVM_EXIT_HYPERV / SYNIC    the guest moved its message or event page, or enabled or disabled its SynIC
    KVM_EXIT_HYPERV / HCALL    HvPostMessage, and HvSignalEvent for a connection without an eventfd
    KVM_HYPERV_EVENTFD         HvSignalEvent for a known connection becomes an eventfd that the loop waits for
    irqfd on a SINT route      raises the vector in the guest's SINT register, unless masked
    resample irqfd, same line  KVM writes to it at each EOM, and at each EOI of the vector; no exit signals EOM
                               otherwise. The loop waits for it only while a message waits for its slot
    MSR filter                 the crash registers: KVM implements them, but without the panic text
    hypercall page             replaced by ours where KVM does not pass on extended calls (Linux before 6.3)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.hyperv import cpuid, hypercall
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.engine import Engine, Notify
from pyvmm.hyperv.enlightenments import DEFAULT, TABLE
from pyvmm.hyperv.kernel_state import SavedVp, restore_vp, save_vp
from pyvmm.hyperv.tlfs import VMBUS_SINT, Access, Feature, Msr, PageMsr, Privilege
from pyvmm.kvm import (
    Cap,
    CpuidEntry,
    Exit,
    HypervHcall,
    HypervSynic,
    IoOut,
    IrqRoute,
    Kvm,
    MsrRange,
    Rdmsr,
    Vcpu,
    Vm,
    Wrmsr,
)
from pyvmm.loop import Loop
from pyvmm.memory import PAGE_SIZE, GuestMemory

NEEDED = (
    Cap.HYPERV,
    Cap.HYPERV_SYNIC2,
    Cap.HYPERV_TIME,
    Cap.HYPERV_EVENTFD,
    Cap.HYPERV_VP_INDEX,
    Cap.IRQFD_RESAMPLE,
    Cap.X86_USER_SPACE_MSR,
    Cap.X86_MSR_FILTER,
)
"""Capabilities that the kernel engine needs."""

FIRST_SINT_GSI = 24
"""The first GSI above the I/O APIC's pins: from here on each VP has one for its VMBus SINT, then come other SINTs."""


_FEATURES_LEAF = 0x40000003
_HINTS_LEAF = 0x40000004


def passes_extended_calls(kvm: Kvm) -> bool:
    """Whether this KVM passes hypercalls from 0x8001 on to user space.

    Linux 6.3 and later do, and list the privilege among those they support; older ones answer "no such call".
    """
    features = _leaves(kvm).get(_FEATURES_LEAF)
    return features is not None and bool(features.ebx & Privilege.EXTENDED_HYPERCALLS)


def has_invariant_control(kvm: Kvm) -> bool:
    """Whether this KVM has the MSR TSC_INVARIANT_CONTROL, which Linux writes where the privilege is offered.

    Linux 6.2 and later have it; on older ones the guest's write raises #GP.
    """
    features = _leaves(kvm).get(_FEATURES_LEAF)
    return features is not None and bool(features.eax & Access.TSC_INVARIANT)


def lacking(kvm: Kvm, names: Iterable[str]) -> list[str]:
    """Return those of the enlightenments `names` that this KVM does not list as its own.

    A KVM that lists none (Linux before 5.11) is believed to have them all.
    """
    leaves = _leaves(kvm)
    features, hints = leaves.get(_FEATURES_LEAF), leaves.get(_HINTS_LEAF)
    if features is None or hints is None:
        return []
    return [
        name
        for name in names
        if TABLE[name].access & ~features.eax
        or TABLE[name].features & ~features.edx
        or TABLE[name].hints & ~hints.eax
    ]


@dataclass(frozen=True, slots=True)
class _Line:
    """An open SINT: its GSI, the eventfd that raises it, and that of the resampling irqfd, which is never written."""

    gsi: int
    sint_fd: int
    unused_fd: int


def _leaves(kvm: Kvm) -> dict[int, CpuidEntry]:
    """Return the Hyper-V leaves that this KVM lists as its own, by function; none before Linux 5.11."""
    if not kvm.check(Cap.SYS_HYPERV_CPUID):
        return {}
    return {entry.function: entry for entry in kvm.supported_hv_cpuid()}


class KernelEngine(Engine):
    """The engine that uses KVM's Hyper-V support. `base_routes`: the PC's interrupt routes, to keep beside ours.

    `extended_calls_exit`: see `passes_extended_calls`. If False, the guest's hypercall page is overwritten with
    `hypercall.page_code_beside_kvm` as soon as KVM has written its own.
    """

    name = "kernel"

    def __init__(
        self,
        vp_count: int,
        memory: GuestMemory,
        loop: Loop,
        *,
        base_routes: Sequence[IrqRoute],
        invariant_tsc: bool = False,
        extended_calls_exit: bool = False,
        enlightenments: Iterable[str] = DEFAULT,
    ) -> None:
        super().__init__(vp_count, memory, loop, masks_known=False, enlightenments=enlightenments)
        self._base_routes = base_routes
        self._extended_calls_exit = extended_calls_exit
        if invariant_tsc:
            self.offer.access |= Access.TSC_INVARIANT
        self._vm: Vm | None = None
        self._lines: dict[tuple[int, int], _Line] = {}  # by VP and SINT
        self._lines_lock = threading.Lock()
        self._eom_fds: list[int] = []  # by VP
        self.synic.blocked = self._await_eom
        self._signal_fds: dict[int, int] = {}
        self._kept: tuple[list[tuple[int, int]], list[int]] = [], []  # SINTs and connections of a detached VM

    @property
    def shares_slots(self) -> bool:
        """Whether KVM sends timer messages: it looks for a free slot and fills it in two steps, within KVM_RUN.

        Linux uses VMBus's own slot for them, unless timers can interrupt directly.
        """
        return bool(self.offer.access & Access.SYNTIMER) and not self.offer.features & Feature.STIMER_DIRECT

    def setup_vm(self, vm: Vm) -> None:
        self._vm = vm
        vm.enable_cap(Cap.X86_USER_SPACE_MSR, int(self.msr_exits))
        ours = [MsrRange.deny(Msr.CRASH_P0, Msr.CRASH_CTL - Msr.CRASH_P0 + 1)]
        if self.hypercalls.extended is not None and not self._extended_calls_exit:
            ours.append(MsrRange.deny(Msr.HYPERCALL, read=False))
        vm.set_msr_filter(ours)

    def cpuid(self) -> list[CpuidEntry]:
        return cpuid.leaves(self.offer, self.vp_count)

    def setup_vcpu(self, vcpu: Vcpu, vp: int) -> None:
        assert self._vm is not None
        vcpu.enable_cap(Cap.HYPERV_SYNIC2)
        eom = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._eom_fds.append(eom)
        self._await_eom(vp)  # a message may have been queued in the VM before
        self.open_sint(vp, VMBUS_SINT)

    def open_sint(self, vp: int, sint: int) -> None:
        # Only for active SynICs: while it takes a routing table KVM notes which line a SINT's EOM belongs to, and it
        # skips VPs whose SynIC is not active yet. Interrupts would still arrive, but no EOM would ever be reported.
        with self._lines_lock:
            if self._vm is None or (vp, sint) in self._lines:
                return
            used = {line.gsi for line in self._lines.values()}
            first = FIRST_SINT_GSI + (vp if sint == VMBUS_SINT else self.vp_count)
            gsi = next(gsi for gsi in range(first, first + len(used) + 1) if gsi not in used)
            line = _Line(gsi, *(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)))
            self._lines[vp, sint] = line
            try:
                self._set_routes(self._vm)
                self._vm.irqfd(line.sint_fd, gsi)
                # A second irqfd on the line, never written: KVM signals its resample side at each EOM. The first is
                # a plain one because KVM raises those at once and resampling ones from a work queue.
                self._vm.irqfd(line.unused_fd, gsi, resample_fd=self._eom_fds[vp])
            except HostError:
                self._drop_line(vp, sint)
                raise

    def close_sint(self, vp: int, sint: int) -> None:
        with self._lines_lock:
            line = self._lines.get((vp, sint))
            if self._vm is None or line is None or sint == VMBUS_SINT:
                return
            self._vm.irqfd(line.sint_fd, line.gsi, assign=False)
            self._vm.irqfd(line.unused_fd, line.gsi, assign=False)
            self._drop_line(vp, sint)
            self._set_routes(self._vm)

    def _set_routes(self, vm: Vm) -> None:
        routes = [IrqRoute.hv_sint(line.gsi, vp, sint) for (vp, sint), line in self._lines.items()]
        vm.set_routes([*self._base_routes, *routes])

    def _drop_line(self, vp: int, sint: int) -> None:
        line = self._lines.pop((vp, sint))
        os.close(line.sint_fd)
        os.close(line.unused_fd)

    def save(self, vcpu: Vcpu, vp: int) -> object:
        return save_vp(vcpu, vp, self.memory)

    def restore(self, vcpu: Vcpu, vp: int, saved: object) -> None:
        assert isinstance(saved, SavedVp)
        restore_vp(vcpu, saved, self.memory)

    def detach(self) -> None:
        self._kept = [place for place in self._lines if place[1] != VMBUS_SINT], list(self._signal_fds)
        self._free()

    def attach(self, passed: float) -> None:
        lines, signals = self._kept
        self._kept = [], []
        for vp, sint in lines:
            self.open_sint(vp, sint)
        for connection_id in signals:
            self._connect_eventfd(connection_id)

    def reset(self) -> None:
        super().reset()
        self._free()

    def _free(self) -> None:
        """Free all descriptors of the VM."""
        for fd in self._eom_fds:
            self.loop.remove_reader(fd)
        for fd in self._signal_fds.values():
            self.loop.remove_reader(fd)
        for fd in (*self._eom_fds, *self._signal_fds.values()):
            os.close(fd)
        for vp, sint in list(self._lines):
            self._drop_line(vp, sint)
        self._eom_fds, self._signal_fds = [], {}
        self._vm = None

    def close(self) -> None:
        """Do nothing: a reset frees everything."""

    def reference_time(self) -> int:
        # KVM derives its Hyper-V counter from the VM's clock (arch/x86/kvm/hyperv.c, get_time_ref_counter).
        return 0 if self._vm is None else self._tapped_time("host", int(self._vm.get_clock().clock) // 100)

    def handle(self, vcpu: Vcpu, vp: int, exit: Exit) -> bool:
        match exit:
            case HypervHcall(input=control, params=(first, second)):
                status = self.hypercalls.call(control, first, second)
                if trace.hypercall.on:
                    trace.hypercall(vp, control & 0xFFFF, control, status)
                exit.reply(status)
                return True
            case HypervSynic():
                self._synic_changed(vp, exit)
                return True
            case Rdmsr(index=msr) if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL:
                exit.reply(self.crash.read(msr))
                return True
            case Wrmsr(index=msr, value=value) if Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL:
                self._write_crash(msr, value)
                exit.ok()
                return True
            case Wrmsr(index=Msr.HYPERCALL, value=value):
                if self._set_hypercall_page(vcpu, vp, value):
                    exit.ok()
                else:
                    exit.fault()
                return True
            case IoOut(port=hypercall.HYPERCALL_PORT, size=width):
                self._call_by_port(vcpu, vp, width)
                return True
        return False

    def _set_hypercall_page(self, vcpu: Vcpu, vp: int, value: int) -> bool:
        """Let KVM take the register and write its page, then write ours over it. False if KVM refused the value."""
        try:
            vcpu.set_msrs({Msr.HYPERCALL: value})
            page = PageMsr(vcpu.get_msrs([Msr.HYPERCALL])[Msr.HYPERCALL])
            if page.enable:
                mode = hypercall.is_long_mode(vcpu.sregs)
                code = hypercall.page_code_beside_kvm(self.memory.read(page.gpa, PAGE_SIZE), long_mode=mode)
                if code is not None:
                    self.memory.write(page.gpa, code)
                    if trace.hypercall_page.on:
                        trace.hypercall_page(vp, page.gpa, hypercall.HYPERCALL_PORT)
        except (HostError, GuestMemoryError) as error:
            if trace.msr_refused.on:
                trace.msr_refused(vp, "write", Msr.HYPERCALL, str(error))
            return False
        return True

    def _synic_changed(self, vp: int, exit: HypervSynic) -> None:
        with self.synic.lock:
            self.synic.vps[vp].control = exit.control
            for page, value in (("simp", exit.msg_page), ("siefp", exit.evt_page)):
                if value != getattr(self.synic.vps[vp], page):
                    try:
                        self.synic.set_page(vp, page, value)
                    except GuestMemoryError as error:  # not RAM: KVM took the value all the same; we use no such page
                        if trace.msr_refused.on:
                            trace.msr_refused(vp, "write", exit.msr, str(error))
                        self.synic.set_page(vp, page, 0)
        self._retries[vp].ask()

    def interrupt(self, vp: int, sint: int) -> None:
        with self._lines_lock:
            line = self._lines.get((vp, sint))
            if line is not None:
                os.eventfd_write(line.sint_fd, 1)

    def _await_eom(self, vp: int) -> None:
        """Have the loop wait for a VP's EOM. One that came before is taken for it, which does no harm."""
        if vp < len(self._eom_fds):
            eom = self._eom_fds[vp]
            self.loop.add_reader(eom, lambda: self._eom(vp, eom))

    def _eom(self, vp: int, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        if trace.eom.on:
            trace.eom(vp)
        self._eom_seen(vp)
        if not self.synic.awaits_eom(vp):
            self.loop.remove_reader(fd)  # each interrupt would wake the loop

    def connect_signal(self, connection_id: int, callback: Notify) -> None:
        super().connect_signal(connection_id, callback)
        self._connect_eventfd(connection_id)

    def _connect_eventfd(self, connection_id: int) -> None:
        if self._vm is None or connection_id in self._signal_fds:
            return
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._vm.hyperv_eventfd(connection_id, fd)
        self._signal_fds[connection_id] = fd
        self.loop.add_reader(fd, lambda: self._signal_fd(connection_id, fd))

    def disconnect_signal(self, connection_id: int) -> None:
        super().disconnect_signal(connection_id)
        fd = self._signal_fds.pop(connection_id, None)
        if fd is not None:
            if self._vm is not None:
                self._vm.hyperv_eventfd(connection_id, fd, remove=True)
            self.loop.remove_reader(fd)
            os.close(fd)

    def _signal_fd(self, connection_id: int, fd: int) -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        signal = self._signals.get(connection_id)
        if signal is not None:
            signal.run()
