"""The KVM VM of a machine with its vCPUs and their threads, from power-on to reset.

A reset discards all of it and makes a new one. That costs some milliseconds, and leaves no state in the kernel that
an explicit reset could miss. Memory, devices and the Hyper-V engine outlive it.

    Hardware() --boot--> set up --start--> runs --halt--> ended --close--> gone          life of a guest
    Hardware() --restore-->                     --pause, save, release-->  gone          part of the life of a guest
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from pyvmm import address_map
from pyvmm.contain import contain
from pyvmm.errors import HostError
from pyvmm.firmware.entry import BootState, RealMode
from pyvmm.hyperv.engine import Engine
from pyvmm.hyperv.hypercall import HYPERCALL_PORT
from pyvmm.inbox import Inbox
from pyvmm.iomap import IoMap
from pyvmm.kvm import (
    Cap,
    CpuidEntry,
    Debug,
    Exit,
    FailEntry,
    HypervHcall,
    HypervSynic,
    InternalError,
    IoIn,
    IoOut,
    IrqRoute,
    Kvm,
    MmioRead,
    MmioWrite,
    Rdmsr,
    Shutdown,
    SystemEvent,
    Unknown,
    Vcpu,
    Vm,
    Wrmsr,
)
from pyvmm.kvm.abi import IrqchipId, SystemEventType
from pyvmm.kvm.exits import exit_detail
from pyvmm.kvm.irq import pc_routes
from pyvmm.kvm.saved_state import SavedVm, keep_differing, restore_vm, save_vm
from pyvmm.machine import cpu
from pyvmm.machine import events as trace
from pyvmm.machine.board import COALESCED, COALESCED_MMIO
from pyvmm.machine.runner import VcpuThread
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot, take_snapshot
from pyvmm.memory import PAGE_SIZE, HostMemory, Region

BREAKPOINT_PORT: Final = address_map.BREAKPOINT.start
_WATCH_SLOTS: Final = range(address_map.WATCH_SLOTS.start, address_map.WATCH_SLOTS.end)


def _routes() -> list[IrqRoute]:
    result = [r for r in pc_routes() if not (r.words[0] == IrqchipId.IOAPIC and r.gsi in (0, 2))]
    return [*result, IrqRoute.irqchip(0, IrqchipId.IOAPIC, 2)]


ROUTES: Final = tuple(_routes())
"""A PC's interrupt lines, with the PIT's on I/O APIC pin 2 as the MADT says."""


class Mapper(Protocol):
    """What maps memory that comes and goes while the guest runs, under the slots that it would have."""

    def map(self, slot: int, region: Region) -> None: ...

    def unmap(self, slot: int) -> None: ...


@dataclass(frozen=True, slots=True)
class SavedHardware:
    """The state of a Hardware, from `save` for `restore` of another one, which gets `boot_ram` as its memory."""

    state: SavedVm
    engine: list[object]
    boot_ram: list[Region]
    added: dict[int, Region]
    zeroes_ignored: set[int]
    exits: list[Counter[str]]


class Hardware:
    """The KVM VM of a machine, its vCPUs and their threads.

    `memory` is the boot RAM; `hypervisor`: the CPUID leaves 0x4000xxxx.

    `reset(reason)` and `failed(error)` are called on vCPU threads; they post to the loop. While `inbox` is full
    vCPUs wait at their exits.
    """

    def __init__(
        self,
        kvm: Kvm,
        host_cpuid: list[CpuidEntry],
        memory: Iterable[Region],
        engine: Engine,
        hypervisor: list[CpuidEntry],
        ports: IoMap,
        mmio: IoMap,
        *,
        reset: Callable[[str], None],
        failed: Callable[[BaseException], None],
        inbox: Inbox,
        unknown_exit: Callable[[str], None] = lambda name: None,
        coalesced: Callable[[int, bytes], None] | None = None,
        polled: Mapping[int, bytearray] | None = None,
        readonly: Mapping[int, HostMemory] | None = None,
    ) -> None:
        self.engine = engine
        self._ports = ports
        self._mmio = mmio
        self._reset = reset
        self._failed = failed
        self._inbox = inbox
        self._unknown_exit = unknown_exit
        self._coalesced = coalesced
        self._polled = polled or {}
        self._readonly = readonly or {}
        self._drain_lock = threading.Lock()
        self._can_drop = kvm.check(Cap.IOEVENTFD) != 0
        self.on_debug: Callable[[int, Exit], bool] | None = None
        """Handler of exits that a debugger caused, on vCPU threads; returns whether the exit was one."""
        self.vm: Vm = kvm.create_vm()
        self.vm.tap, self.vm.memslot_tap = engine.taps.ioctl, engine.taps.memslot
        self._kvm = kvm
        self._cpuid = [
            cpu.entries_for(host_cpuid, hypervisor, index, engine.vp_count) for index in range(engine.vp_count)
        ]
        self._added: dict[int, Region] = {}  # hot-added memory, by KVM's slot
        self.mapper: Mapper | None = None
        """What sets the slots of hot-added memory in place of this class."""
        self._zeroes_ignored: set[int] = set()
        self._sink_eventfd = os.eventfd(0, os.EFD_CLOEXEC)
        self.threads: list[VcpuThread] = []
        try:
            self._build(kvm, memory)
        except BaseException:
            self.close()
            raise

    def _build(self, kvm: Kvm, memory: Iterable[Region]) -> None:
        vm, engine = self.vm, self.engine
        # First: the MSR filter waits for a grace period, 0.2 ms in a new VM, but 15 ms after a memory slot was set
        # (Linux 6.18).
        engine.setup_vm(vm)
        vm.set_identity_map_address(address_map.IDENTITY_MAP.start)
        vm.set_tss_address(address_map.TSS.start)
        self.boot_ram = dict(enumerate(memory, address_map.RAM_SLOTS.start))  # by KVM's slot
        for slot, region in self.boot_ram.items():
            vm.set_memory(slot, region.gpa, region.size, region.address)
        if kvm.check(Cap.READONLY_MEM):  # else reading it is an exit, as writing is
            for slot, (gpa, page) in enumerate(self._readonly.items(), address_map.READONLY_SLOTS.start):
                vm.set_memory(slot, gpa, page.size, page.address, readonly=True)
        vm.create_irqchip()
        vm.create_pit()
        vm.set_routes(ROUTES)
        for index in range(engine.vp_count):
            vcpu = vm.create_vcpu(index)
            vcpu.set_cpuid(self._cpuid[index])
            vcpu.set_msrs(cpu.FIRMWARE_MSRS)
            engine.setup_vcpu(vcpu, index)
            for port, answer in self._polled.items():
                vcpu.add_poll_fastpath(port, answer, disabled_by=trace.vcpu_exit)
            interrupted = partial(engine.interrupted, vcpu, index)
            self.threads.append(VcpuThread(vcpu, index, self._handler(vcpu, index), self._failed, interrupted))
        engine.kick = lambda vp: self.threads[vp].kick()
        if self._coalesced is not None and kvm.check(Cap.COALESCED_PIO):
            for addr, pio in (*((port, True) for port in COALESCED), *((gpa, False) for gpa in COALESCED_MMIO)):
                vm.coalesce(addr, 1, pio=pio)
                for vcpu in vm.vcpus:
                    vcpu.add_overflow_fastpath(addr, trace.vcpu_exit, pio=pio)
        else:
            self._coalesced = None

    @property
    def ram(self) -> dict[int, Region]:
        """Return boot RAM and hot-added memory, by KVM's slot."""
        return self.boot_ram | self._added

    def map_memory(self, slot: int, region: Region) -> None:
        """Map `region` into the running guest. Raises HostError."""
        if self.mapper is None:
            self.vm.set_memory(slot, region.gpa, region.size, region.address)
        else:
            self.mapper.map(slot, region)
        self._added[slot] = region

    def unmap_memory(self, slot: int) -> None:
        """Remove a memory slot that `map_memory` made. The vCPUs must not run."""
        if self.mapper is None:
            self.vm.set_memory(slot, 0, 0, 0)
        else:
            self.mapper.unmap(slot)
        self._added.pop(slot, None)

    def protect(self, pages: Mapping[int, bool]) -> None:
        """Take these pages of boot RAM away from the guest where the value is true, else the right to write them, and
        give it all others: such accesses exit as MmioRead and MmioWrite.

        The vCPUs must not run. Raises HostError, also while a `mapper` has the slots.
        """
        if self.mapper is not None:
            raise HostError("a watchpoint and poison both change memory slots: switch poison off")
        for slot in (*_WATCH_SLOTS, *self.boot_ram):
            if slot in self.vm.slots:
                self.vm.set_memory(slot, 0, 0, 0)
        spare = iter(_WATCH_SLOTS)
        for slot, region in self.boot_ram.items():
            at, number = region.gpa, slot
            for page in (each for each in sorted(pages) if region.gpa <= each < region.end):
                if at < page:
                    self.vm.set_memory(number, at, page - at, region.address + at - region.gpa)
                    number = next(spare, slot)
                if not pages[page]:
                    self.vm.set_memory(number, page, PAGE_SIZE, region.address + page - region.gpa, readonly=True)
                    number = next(spare, slot)
                at = page + PAGE_SIZE
            if at < region.end:
                self.vm.set_memory(number, at, region.end - at, region.address + at - region.gpa)

    def boot(self, state: BootState | RealMode) -> None:
        """Set the first vCPU's registers; the others wait for INIT and SIPI."""
        state.apply(self.threads[0].vcpu)

    def start(self, *, paused: bool = False) -> None:
        """Start the vCPUs' threads; `paused`: without an instruction before `resume`."""
        for thread in self.threads:
            thread.request(pause=paused)
            thread.start()

    def pause(self) -> None:
        """Pause every vCPU; return when none is in the guest."""
        for thread in self.threads:
            thread.request(pause=True)
        for thread in self.threads:
            thread.wait_parked()

    def resume(self) -> None:
        for thread in self.threads:
            thread.request(pause=False)

    def stop(self) -> None:
        """Request that all vCPU threads end, without waiting. Callable from any thread, a vCPU's own too."""
        for thread in self.threads:
            thread.request(stop=True)

    def freeze(self, on: bool) -> None:
        """Freeze or unfreeze every vCPU, independently of `pause`. Callable from any thread; does not wait."""
        for thread in self.threads:
            thread.request(freeze=on)

    def sleep(self, on: bool) -> None:
        """Let every vCPU sleep at the guest's own request, or wake up. Callable from any thread; does not wait."""
        for thread in self.threads:
            thread.request(sleep=on)

    def vcpu_snapshots(self) -> list[VcpuSnapshot]:
        """Return each vCPU's state; pauses running vCPUs briefly. Raises HostError."""
        self.pause()
        try:
            return [take_snapshot(thread.vcpu) for thread in self.threads]
        finally:
            self.resume()

    def caller(self) -> tuple[int, int] | None:
        """Return index and RIP of the vCPU whose thread calls this at an exit; None on any other thread."""
        here = threading.get_native_id()
        found = next((thread for thread in self.threads if thread.native_id == here), None)
        return None if found is None else (found.index, found.vcpu.regs.rip)

    def halt(self) -> None:
        """End the vCPU threads for good. Called on the loop's thread."""
        self.stop()
        for thread in self.threads:
            thread.join()

    # To go on in another VM

    def save(self) -> SavedHardware:
        """Return the state of VM and vCPUs. They are paused, and nothing that they caused waits on the loop.

        Raises HostError.
        """
        state = save_vm(self.vm, self._kvm.msr_index_list())
        engine = [self.engine.save(thread.vcpu, thread.index) for thread in self.threads]
        with self._kvm.create_vm() as fresh:
            fresh.create_irqchip()
            for index, cpuid in enumerate(self._cpuid):
                vcpu = fresh.create_vcpu(index)
                vcpu.set_cpuid(cpuid)
                vcpu.set_msrs(cpu.FIRMWARE_MSRS)
            keep_differing(state, fresh)
        exits = [thread.exits for thread in self.threads]
        boot_ram = list(self.boot_ram.values())
        return SavedHardware(state, engine, boot_ram, self._added, self._zeroes_ignored, exits)

    def restore(self, saved: SavedHardware, start_clocks: Callable[[], None]) -> None:
        """Set the state that `save` returned. `start_clocks()` is called when the guest's clocks go on.

        Afterwards the engine is to be attached, before `start`. Raises HostError.
        """
        for slot, region in saved.added.items():
            self.map_memory(slot, region)
        restore_vm(
            self.vm,
            saved.state,
            start_clocks=start_clocks,
            between=lambda vcpu, index: self.engine.restore(vcpu, index, saved.engine[index]),
        )
        for gpa in saved.zeroes_ignored:
            self.ignore_zero_writes(gpa, True)
        for thread, exits in zip(self.threads, saved.exits, strict=True):
            thread.exits.update(exits)

    def release(self) -> None:
        """End the threads and close the VM; the engine is detached and keeps its state. On the loop's thread."""
        self._end(self.engine.detach)

    def close(self) -> None:
        """End the threads, reset the engine, close the VM. Called on the loop's thread."""
        self._end(self.engine.reset)

    def _end(self, leave: Callable[[], None]) -> None:
        self.halt()
        self.engine.kick = lambda vp: None
        self.drain()
        leave()
        self.vm.close()
        os.close(self._sink_eventfd)

    def drain(self) -> None:
        """Drain the coalesced I/O that KVM has queued."""
        if self._coalesced is not None:
            with self._drain_lock:
                for write in self.vm.drain_coalesced():
                    self._coalesced(write.addr, write.data)

    def ignore_zero_writes(self, gpa: int, on: bool) -> None:
        """Have KVM drop zeroes that the guest writes to the byte at `gpa`, or stop that: an ioeventfd with datamatch
        0, whose eventfd is never read. From any thread; in force when the requesting vCPU reenters the guest.
        """
        if on:
            self._zeroes_ignored.add(gpa)
        else:
            self._zeroes_ignored.discard(gpa)
        if self._can_drop and not self.vm.closed:
            self.vm.ioeventfd(self._sink_eventfd, gpa, 1, datamatch=0, assign=on)

    def set_irq(self, gsi: int, level: bool) -> None:
        """Drive an interrupt line. Callable from any thread."""
        if not self.vm.closed:
            self.vm.set_irq_line(gsi, int(level))

    def _handler(self, vcpu: Vcpu, index: int) -> Callable[[Exit], bool]:
        """Return the exit handler of one vCPU; the handler returns False to end the thread."""
        ports, mmio, engine, inbox = self._ports, self._mmio, self.engine, self._inbox

        def handle(exit: Exit) -> bool:
            try:
                return answer(exit)
            except Exception as error:  # containment; KVM's own failures are reported by `failed` instead
                contain(exit.NAME, error)
                if isinstance(exit, Rdmsr | Wrmsr):
                    exit.fault()
                return True

        def answer(exit: Exit) -> bool:
            if self._coalesced is not None:
                self.drain()
            if inbox.full:
                inbox.hold(lambda: vcpu.immediate_exit)
            if trace.vcpu_exit.on:
                trace.vcpu_exit(index, exit.NAME, exit_detail(exit))
            match exit:
                case IoOut(port=port):
                    if port == HYPERCALL_PORT and engine.handle(vcpu, index, exit):
                        return True
                    if port == BREAKPOINT_PORT and self.on_debug is not None and self.on_debug(index, exit):
                        return True
                    size = exit.size
                    for at in range(0, len(exit.data), size):
                        ports.write(port, size, int.from_bytes(exit.data[at : at + size], "little"))
                case IoIn(port=port, size=size):
                    exit.reply(b"".join([ports.read(port, size).to_bytes(size, "little") for _ in range(exit.count)]))
                case MmioRead() if self.on_debug is not None and self.on_debug(index, exit):
                    pass
                case MmioRead(gpa=gpa, size=size):
                    exit.reply(mmio.read(gpa, size).to_bytes(size, "little"))
                case MmioWrite() if self.on_debug is not None and self.on_debug(index, exit):
                    pass
                case MmioWrite(gpa=gpa, data=data):
                    mmio.write(gpa, len(data), int.from_bytes(data, "little"))
                case HypervHcall() | HypervSynic():
                    engine.handle(vcpu, index, exit)
                case Rdmsr() | Wrmsr():
                    if not engine.handle(vcpu, index, exit):
                        exit.fault()
                        value = exit.value if isinstance(exit, Wrmsr) else None
                        engine.on_msr_refused("msr read" if value is None else "msr write", exit.index, value)
                case Shutdown():
                    self._reset("triple fault")
                    return False
                case SystemEvent(type=SystemEventType.RESET | SystemEventType.SHUTDOWN):
                    self._reset("Hyper-V reset MSR")
                    return False
                case FailEntry(reason=reason):
                    failure = f"vcpu {index}: KVM cannot enter the guest, hardware reason {reason:#x}"
                    self._failed(HostError(failure))
                    return False
                case InternalError():
                    self._failed(HostError(self._internal_error(vcpu, index, exit)))
                    return False
                case Unknown():  # no way to handle it; entering again may repeat the same exit
                    what = f"reason {exit.reason}, hardware reason {exit.hardware:#x}"
                    self._failed(HostError(f"vcpu {index}: unknown KVM exit ({what})"))
                    return False
                case Debug() if self.on_debug is not None and self.on_debug(index, exit):
                    pass
                case _:
                    if trace.unknown_exit.on:
                        trace.unknown_exit(index, exit.NAME, exit_detail(exit))
                    self._unknown_exit(exit.NAME)
            return True

        return handle

    @staticmethod
    def _internal_error(vcpu: Vcpu, index: int, exit: InternalError) -> str:
        where = f"vcpu {index} at rip {vcpu.regs.rip:#x}"
        code = f", instruction {exit.instruction.hex(' ')}" if exit.instruction else ""
        return (
            f"{where}: KVM internal error {exit.suberror}{code}; this KVM cannot run this guest (--host emulated can)"
        )
