"""AutoEOI in the user engine: interrupts that are over as soon as the vCPU has taken them.

Source: TLFS section 11.8.2; Intel SDM vol. 3, 10.8 (priorities); KVM API 4.27 (KVM_SET_VCPU_EVENTS).

A SINT with AutoEOI gets no EOI from the guest. KVM's local APIC sets a vector's in-service bit when the vCPU takes
it, and only an EOI clears that: delivered by the APIC the first such interrupt would block all later ones of its
priority. So the vCPU's thread injects it past the APIC, as an interrupt that the vCPU is taking already.

    raise_(vp, vector) --kick--> the vCPU leaves the guest --> inject(vcpu, vp): taken at the next entry
                                                           --> not possible now (IF clear, priority): again in 1 ms

The guest sees what the TLFS says; an interrupt may come up to RETRY late where the guest had interrupts off.
Linux does not use AutoEOI where CPUID deprecates it (cpuid.Hint.AUTO_EOI_DEPRECATED), as here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvmm.hyperv import events as trace
from pyvmm.kvm import Vcpu
from pyvmm.kvm.abi import MpState
from pyvmm.loop import Loop, Pending

RETRY = 0.001
"""Seconds until the next attempt, while the vCPU cannot take the interrupt."""

_RFLAGS_IF = 1 << 9
_TPR, _SPURIOUS, _IN_SERVICE = 0x80, 0xF0, 0x100
_APIC_ENABLED = 1 << 8


class AutoEoi:
    """Pending AutoEOI interrupts of each VP, as a set of vectors: one that is raised again before it is taken merges.

    `kick(vp)` makes a vCPU leave the guest soon, so that its thread calls `inject`. From any thread.
    """

    def __init__(self, vp_count: int, loop: Loop, kick: Callable[[int], None]) -> None:
        self._loop = loop
        self._kick = kick
        self._lock = threading.Lock()
        self._pending = [0] * vp_count  # bit masks of vectors
        self._waits = [Pending(loop, self._wait, vp) for vp in range(vp_count)]

    def reset(self) -> None:
        """Forget all interrupts. No vCPU runs."""
        with self._lock:
            self._pending = [0] * len(self._pending)

    def raise_(self, vp: int, vector: int) -> None:
        """Raise a vector. From any thread."""
        with self._lock:
            self._pending[vp] |= 1 << vector
        self._kick(vp)

    def inject(self, vcpu: Vcpu, vp: int) -> None:
        """Inject the highest pending vector if the vCPU can take it now. On the vCPU's thread, out of the guest."""
        if not self._pending[vp]:
            return
        apic = memoryview(vcpu.get_lapic()).cast("B").cast("I")
        if not apic[_SPURIOUS // 4] & _APIC_ENABLED:
            with self._lock:
                self._pending[vp] = 0  # as the APIC does with interrupts while software has disabled it
            return
        with self._lock:
            vector = self._pending[vp].bit_length() - 1
        if not self._takes(vcpu, apic, vector):
            self._waits[vp].ask()
            return
        with self._lock:
            self._pending[vp] &= ~(1 << vector)
            more = self._pending[vp] != 0
        events = vcpu.events
        events.interrupt.injected, events.interrupt.nr, events.interrupt.soft = 1, vector, 0
        events.flags = 0  # an NMI may have come since: what the flags stand for stays as it is
        vcpu.events = events
        if vcpu.mp_state == MpState.HALTED:
            vcpu.mp_state = MpState.RUNNABLE
        if trace.auto_eoi.on:
            trace.auto_eoi(vp, vector)
        if more:
            self._waits[vp].ask()

    @staticmethod
    def _takes(vcpu: Vcpu, apic: memoryview, vector: int) -> bool:
        """Return whether the vCPU would take the vector at its next instruction, were it the APIC's."""
        events = vcpu.events
        busy = events.interrupt.injected or events.exception.injected or events.nmi.injected
        if busy or events.interrupt.shadow or not vcpu.regs.rflags & _RFLAGS_IF:
            return False
        in_service = next((n for n in range(7, -1, -1) if apic[(_IN_SERVICE + 0x10 * n) // 4]), None)
        highest = 0
        if in_service is not None:
            highest = 32 * in_service + apic[(_IN_SERVICE + 0x10 * in_service) // 4].bit_length() - 1
        return vector >> 4 > max(highest, apic[_TPR // 4] & 0xFF) >> 4

    def _wait(self, vp: int) -> None:
        """Kick the vCPU again after RETRY. On the loop."""
        self._loop.after(RETRY, lambda: self._kick(vp))
