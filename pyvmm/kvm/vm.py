"""A virtual machine: memory slots, interrupt controllers and lines, eventfds, clock, and the creation of vCPUs."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from struct import pack

from pyvmm.errors import HostError
from pyvmm.kvm import abi, structs
from pyvmm.kvm.abi import IrqchipId, Op
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.coalesced import CoalescedRing, CoalescedWrite
from pyvmm.kvm.handle import Handle, KvmError, enable_cap
from pyvmm.kvm.irq import IrqRoute, pack_routes
from pyvmm.kvm.msr_filter import MsrRange, build_filter
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.tap import Item, Tap


class Vm(Handle):
    """A VM. Created by `Kvm.create_vm`; closing it closes its vCPUs first.

    Any thread may call any method; KVM does the locking. The kernel keeps the VM alive while any of its descriptors
    is open or mapped.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(fd, "vm")
        self.vcpus: list[Vcpu] = []
        self.slots: dict[int, int] = {}  # slot -> bytes
        self.memslot_tap = Tap("memslot")
        """What new memory slots cross; their deletion does not, as the memory may be gone after it."""
        self._lost_slots: set[int] = set()  # which KVM was never given, by the tap
        self._vcpu_mmap_size = vcpu_mmap_size
        self._ring: CoalescedRing | None = None

    def close(self) -> None:
        """Close the vCPUs, then the VM."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.release()
        for vcpu in self.vcpus:
            vcpu.close()
        super().close()

    def check(self, cap: Cap) -> int:
        """The value of a capability for this VM (KVM_CHECK_EXTENSION); 0 if it lacks it."""
        return self.ioctl(Op.CHECK_EXTENSION, int(cap), cap.name)

    def enable_cap(self, cap: Cap, *args: int) -> None:
        """Enable a capability of the VM."""
        enable_cap(self, cap, args)

    # memory

    def set_memory(
        self,
        slot: int,
        gpa: int,
        size: int,
        host_address: int,
        *,
        readonly: bool = False,
        log_dirty: bool = False,
    ) -> None:
        """Map `size` bytes at `host_address` of this process at `gpa` of the guest; size 0 deletes the slot.

        Address and size are multiples of 4 KiB. The host memory must stay mapped as long as the slot exists.
        Writes to a read-only slot exit as MmioWrite.
        """
        if not size and slot in self._lost_slots:
            self._lost_slots.discard(slot)
        elif size and self.memslot_tap.on:
            self._tap_memory(slot, gpa, size, host_address, readonly=readonly, log_dirty=log_dirty)
        else:
            self._set_memory(slot, gpa, size, host_address, readonly=readonly, log_dirty=log_dirty)

    def _tap_memory(
        self, slot: int, gpa: int, size: int, host_address: int, *, readonly: bool, log_dirty: bool
    ) -> None:
        self._lost_slots.add(slot)

        def deliver(item: Item) -> None:
            if slot not in self._lost_slots and slot not in self.slots:
                raise HostError(f"memory slot {slot} is gone")  # its memory, too, perhaps
            place, length = int(item.fields["gpa"]), int(item.fields["size"])
            if not (0 <= place < 1 << 52 and 0 < length <= size):
                raise HostError(f"memory slot {slot}: no {length:#x} bytes at {place:#x}, there are {size:#x}")
            self._set_memory(
                slot, place, length, host_address, readonly=bool(item.fields["readonly"]), log_dirty=log_dirty
            )
            self._lost_slots.discard(slot)

        fields = {"slot": slot, "gpa": gpa, "size": size, "readonly": int(readonly)}
        try:
            self.memslot_tap.cross("out", b"", fields, deliver)
        except OSError as error:
            self._lost_slots.discard(slot)
            about = f"slot {slot}, gpa {gpa:#x}, size {size:#x}"
            raise KvmError(Op.SET_USER_MEMORY_REGION, self.where, about, error.errno or 0) from None

    def _set_memory(
        self, slot: int, gpa: int, size: int, host_address: int, *, readonly: bool, log_dirty: bool
    ) -> None:
        flags = abi.MEM_READONLY * readonly | abi.MEM_LOG_DIRTY_PAGES * log_dirty
        region = structs.UserspaceMemoryRegion(slot, flags, gpa, size, host_address)
        self.ioctl(Op.SET_USER_MEMORY_REGION, region, f"slot {slot}, gpa {gpa:#x}, size {size:#x}")
        if size:
            self.slots[slot] = size
        else:
            self.slots.pop(slot, None)

    def dirty_log(self, slot: int) -> bytearray:
        """One bit per page written since the last call, lowest page in bit 0 of byte 0. Needs `log_dirty`."""
        pages = self.slots.get(slot, 0) // abi.PAGE_SIZE
        bitmap = bytearray((pages + 63) // 64 * 8)
        if not bitmap:
            raise HostError(f"vm has no memory slot {slot} to read a dirty log from")
        pinned = (ctypes.c_char * len(bitmap)).from_buffer(bitmap)
        self.ioctl(Op.GET_DIRTY_LOG, structs.DirtyLog(slot, 0, ctypes.addressof(pinned)), f"slot {slot}")
        del pinned
        return bitmap

    def set_tss_address(self, gpa: int) -> None:
        """Reserve three pages of guest address space for KVM, which needs them for real mode on Intel CPUs."""
        self.ioctl(Op.SET_TSS_ADDR, gpa, f"{gpa:#x}")

    def set_identity_map_address(self, gpa: int) -> None:
        """Reserve one page for KVM's identity page table, needed for real mode on Intel CPUs. Before any vCPU."""
        self.ioctl(Op.SET_IDENTITY_MAP_ADDR, bytearray(pack("<Q", gpa)), f"{gpa:#x}")

    # interrupt controllers and lines

    def create_irqchip(self) -> None:
        """Create the in-kernel PICs, I/O APIC and local APICs. Before the first vCPU."""
        self.ioctl(Op.CREATE_IRQCHIP)

    def create_pit(self, *, speaker: bool = True) -> None:
        """Create the in-kernel 8254 timer; `speaker`: with port 0x61."""
        self.ioctl(Op.CREATE_PIT2, structs.PitConfig(flags=abi.PIT_SPEAKER_DUMMY * speaker))

    def get_pit(self) -> structs.PitState2:
        """State of the in-kernel PIT."""
        state = structs.PitState2()
        self.ioctl(Op.GET_PIT2, state)
        return state

    def set_pit(self, state: structs.PitState2) -> None:
        """Restore a state that `get_pit` returned."""
        self.ioctl(Op.SET_PIT2, state)

    def get_irqchip(self, chip: IrqchipId) -> structs.Irqchip:
        """State of one interrupt controller of the full in-kernel irqchip."""
        state = structs.Irqchip(chip_id=int(chip))
        self.ioctl(Op.GET_IRQCHIP, state, f"chip {chip}")
        return state

    def set_irqchip(self, state: structs.Irqchip) -> None:
        """Restore a state that `get_irqchip` returned."""
        self.ioctl(Op.SET_IRQCHIP, state, f"chip {state.chip_id}")

    def set_irq_line(self, gsi: int, level: int) -> None:
        """Raise (1) or lower (0) an interrupt line. For an edge interrupt call it with 1, then 0."""
        self.ioctl(Op.IRQ_LINE, structs.IrqLevel(gsi, level), f"gsi {gsi}, level {level}")

    def set_routes(self, routes: Sequence[IrqRoute]) -> None:
        """Replace the whole interrupt routing table (begin with `irq.pc_routes()` to keep a PC's routes)."""
        self.ioctl(Op.SET_GSI_ROUTING, pack_routes(routes), f"{len(routes)} routes")

    def signal_msi(self, address: int, data: int) -> int:
        """Deliver a message-signalled interrupt. Returns > 0 if it was delivered, 0 if the guest blocks it."""
        message = structs.Msi(address & 0xFFFFFFFF, address >> 32, data)
        return self.ioctl(Op.SIGNAL_MSI, message, f"address {address:#x}, data {data:#x}")

    # eventfds and queued writes

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, assign: bool = True) -> None:
        """Connect eventfd `fd` to line `gsi`: a write to it raises the line in the kernel.

        With `resample_fd` the line is level-triggered: it stays up until the guest sends the EOI, which lowers it and
        signals `resample_fd`.
        """
        flags = 0 if assign else abi.IRQFD_DEASSIGN
        if resample_fd is not None:
            flags |= abi.IRQFD_RESAMPLE
        request = structs.Irqfd(fd, gsi, flags, 0 if resample_fd is None else resample_fd)
        self.ioctl(Op.IRQFD, request, f"fd {fd}, gsi {gsi}")

    def ioeventfd(
        self,
        fd: int,
        addr: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        assign: bool = True,
    ) -> None:
        """Signal eventfd `fd` when the guest writes `length` bytes (1, 2, 4, 8) at `addr`, without an exit.

        With `datamatch` only when it writes that value; other values exit as usual.
        """
        flags = abi.IOEVENTFD_PIO * pio | abi.IOEVENTFD_DEASSIGN * (not assign)
        if datamatch is not None:
            flags |= abi.IOEVENTFD_DATAMATCH
        request = structs.Ioeventfd(datamatch or 0, addr, length, fd, flags)
        where = "port" if pio else "gpa"
        self.ioctl(Op.IOEVENTFD, request, f"fd {fd}, {where} {addr:#x}, {length} bytes")

    def coalesce(self, addr: int, size: int, *, pio: bool = False) -> None:
        """Have KVM queue guest writes to these addresses instead of exiting: see `drain_coalesced`.

        `pio` needs Cap.COALESCED_PIO, else Cap.COALESCED_MMIO.
        """
        zone = structs.CoalescedZone(addr, size, int(pio))
        self.ioctl(Op.REGISTER_COALESCED_MMIO, zone, f"{addr:#x}, {size} bytes, pio={int(pio)}")

    def uncoalesce(self, addr: int, size: int, *, pio: bool = False) -> None:
        """Undo `coalesce`. Queued writes stay in the ring until drained."""
        zone = structs.CoalescedZone(addr, size, int(pio))
        self.ioctl(Op.UNREGISTER_COALESCED_MMIO, zone, f"{addr:#x}, {size} bytes, pio={int(pio)}")

    def drain_coalesced(self) -> list[CoalescedWrite]:
        """Remove and return the queued writes, oldest first. Quick when there are none: call it on every exit."""
        return self._ring.drain() if self._ring is not None else []

    def drain_overflow(self, addr: int, byte: int, *, pio: bool) -> bool:
        """Handle a write that found the ring full: see `CoalescedRing.drain_overflow`. For `Vcpu.run`."""
        return self._ring is not None and self._ring.drain_overflow(addr, byte, pio=pio)

    # Hyper-V, MSRs, clock

    def set_msr_filter(self, ranges: Sequence[MsrRange], *, default_deny: bool = False) -> None:
        """Set the MSR filter: the accesses that KVM does not handle itself; an empty list removes the filter.

        For exits instead of #GP enable Cap.X86_USER_SPACE_MSR with MsrExitReason.FILTER first.
        """
        request, bitmaps = build_filter(ranges, default_deny=default_deny)
        self.ioctl(Op.X86_SET_MSR_FILTER, request, f"{len(ranges)} ranges")
        del bitmaps  # KVM has copied them

    def hyperv_eventfd(self, conn_id: int, fd: int, *, remove: bool = False) -> None:
        """Connect eventfd `fd` to a connection id: the guest's HvSignalEvent on it signals `fd` without an exit."""
        flags = abi.HYPERV_EVENTFD_DEASSIGN * remove
        self.ioctl(Op.HYPERV_EVENTFD, structs.HypervEventfd(conn_id, fd, flags), f"connection {conn_id:#x}")

    def get_clock(self) -> structs.ClockData:
        """The VM's clock (kvm-clock, and the base of the kernel's Hyper-V reference time), in nanoseconds."""
        data = structs.ClockData()
        self.ioctl(Op.GET_CLOCK, data)
        return data

    def set_clock(self, nanoseconds: int) -> None:
        """Set the VM's clock, for a VM that is restored or forked."""
        self.ioctl(Op.SET_CLOCK, structs.ClockData(clock=nanoseconds))

    # vCPUs

    def create_vcpu(self, id: int) -> Vcpu:
        """Create a vCPU; `id` is its local APIC id. The VM keeps it in `vcpus`."""
        vcpu = Vcpu(self.ioctl(Op.CREATE_VCPU, id, f"id {id}"), id, self._vcpu_mmap_size, self)
        vcpu.tap = self.tap
        self.vcpus.append(vcpu)
        if self._ring is None:
            page = self.check(Cap.COALESCED_MMIO)
            if page:
                self._ring = CoalescedRing(vcpu.shared, page * mmap.PAGESIZE)
        return vcpu
