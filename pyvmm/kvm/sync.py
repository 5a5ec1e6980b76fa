"""Synchronised registers: vCPU registers in the kvm_run page, read and written without a system call.

Source: Linux Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS; struct kvm_sync_regs.

    valid: on each exit KVM writes these classes of registers into the page.
    dirty: at the next KVM_RUN it takes these from the page, and clears the bits.
"""

from __future__ import annotations

import ctypes
from mmap import mmap
from typing import TYPE_CHECKING

from pyvmm.errors import HostError
from pyvmm.kvm.abi import RUN_DIRTY_REGS, RUN_SYNC_REGS, RUN_VALID_REGS, SyncReg
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.structs import Regs, Sregs, SyncRegsArea, VcpuEvents

if TYPE_CHECKING:
    from pyvmm.kvm.vm import Vm


class SyncRegs:
    """The shared registers of one vCPU; for its own thread, between two runs.

    `enable` first. `regs`, `sregs`, `events` are live views: what they show is from the last exit, and what
    is written into them counts only after `mark_dirty`. Dirty registers win over those set by ioctl.
    """

    def __init__(self, shared: mmap, vm: Vm) -> None:
        self._vm = vm
        self._view = memoryview(shared)
        self._valid_dirty = self._view[RUN_VALID_REGS : RUN_DIRTY_REGS + 8].cast("Q")
        self._area: SyncRegsArea | None = SyncRegsArea.from_buffer(shared, RUN_SYNC_REGS)
        self.regs: Regs = self._area.regs
        self.sregs: Sregs = self._area.sregs
        self.events: VcpuEvents = self._area.events

    def supported(self) -> SyncReg:
        """The classes this KVM can share; empty if it lacks Cap.SYNC_REGS."""
        return SyncReg(self._vm.check(Cap.SYNC_REGS) & (SyncReg.REGS | SyncReg.SREGS | SyncReg.EVENTS))

    def enable(self, wanted: SyncReg = SyncReg.REGS) -> None:
        """Choose the classes that KVM writes on every exit (replaces an earlier choice)."""
        missing = wanted & ~self.supported()
        if missing:
            raise HostError(f"this KVM cannot share {missing!r} through kvm_run (KVM_CAP_SYNC_REGS)")
        self._flags[0] = int(wanted)

    @property
    def valid(self) -> SyncReg:
        """The classes KVM writes on every exit."""
        return SyncReg(self._flags[0])

    @property
    def dirty(self) -> SyncReg:
        """The classes that KVM reads from the page at the next run."""
        return SyncReg(self._flags[1])

    def mark_dirty(self, changed: SyncReg = SyncReg.REGS) -> None:
        """Have KVM read these classes from the page at the next run."""
        self._flags[1] |= int(changed)

    @property
    def _flags(self) -> memoryview[int]:
        """kvm_valid_regs and kvm_dirty_regs."""
        if self._area is None:
            raise HostError("the vcpu is closed")
        return self._valid_dirty

    def release(self) -> None:
        """Release the page so that it can be unmapped. The views are copies from then on."""
        self.regs, self.sregs, self.events = Regs(), Sregs(), VcpuEvents()
        self._area = None
        self._valid_dirty.release()
        self._view.release()


assert ctypes.sizeof(SyncRegsArea) <= 2048, "SYNC_REGS_SIZE_BYTES"
