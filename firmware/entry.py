"""The first vCPU's registers at the kernel's first instruction, and the tables they point to.

Source: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Xen docs/misc/pvh.pandoc;
Intel SDM volume 3, chapters 3 (segments), 4 (paging) and 9.8.5 (switching to 64-bit mode).

A vCPU starts in real mode at the reset vector. A boot loader would switch it to 64-bit mode; we set the
registers as the loader would leave them: flat segments, and in 64-bit mode identity-mapping page tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import pack
from typing import Any, Protocol

from pyvmm import address_map

CODE, DATA, TASK = 0x10, 0x18, 0x20  # selectors: __BOOT_CS, __BOOT_DS, __BOOT_TSS

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
RFLAGS_ALWAYS = 1 << 1  # reads as one; interrupts stay off

PRESENT, WRITABLE, LARGE = 1 << 0, 1 << 1, 1 << 7
PAGE = 4096
LARGE_PAGE = 2 << 20
MAPPED_GIB = 4

CODE_EXECUTE_READ_ACCESSED = 11
DATA_READ_WRITE_ACCESSED = 3
TASK_BUSY_32 = 11


class Vcpu(Protocol):
    """The part of a vCPU (pyvmm.kvm.Vcpu) that is used here: its registers, as the kernel's structures."""

    regs: Any
    sregs: Any


@dataclass(slots=True)
class SegmentState:
    """A segment register: its selector, and the hidden part loaded from the descriptor."""

    selector: int
    type: int
    limit: int = 0xFFFFFFFF
    s: int = 1  # code or data, not a system segment
    db: int = 1  # 32 bits wide
    l: int = 0  # 64 bits wide  # noqa: E741 - the kernel's name for it
    g: int = 1  # limit counts pages

    def descriptor(self) -> bytes:
        """Return the segment's eight bytes in the GDT."""
        limit = self.limit >> 12 if self.g else self.limit
        access = self.type | self.s << 4 | 1 << 7
        flags = self.g << 3 | self.db << 2 | self.l << 1
        return pack("<HHBBBB", limit & 0xFFFF, 0, 0, access, flags << 4 | limit >> 16, 0)


@dataclass(slots=True)
class BootState:
    """Everything that differs from reset in the first vCPU when the kernel's first instruction runs."""

    rip: int
    rax: int = 0  # Multiboot: the loader's magic number
    rsi: int = 0  # 64-bit entry: the zero page
    rbx: int = 0  # PVH: struct hvm_start_info; Multiboot: the boot information
    rsp: int = address_map.STACK.end  # so that an early fault does not wrap around
    cr0: int = CR0_PE | CR0_ET
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    code: SegmentState = field(default_factory=lambda: SegmentState(CODE, CODE_EXECUTE_READ_ACCESSED))
    data: SegmentState = field(default_factory=lambda: SegmentState(DATA, DATA_READ_WRITE_ACCESSED))
    task: SegmentState = field(default_factory=lambda: SegmentState(TASK, TASK_BUSY_32, limit=0x67, s=0, db=0, g=0))

    def gdt(self) -> bytes:
        """Return the descriptor table to be written at address_map.GDT: two unused entries, code, data, task."""
        return bytes(16) + self.code.descriptor() + self.data.descriptor() + self.task.descriptor()

    def apply(self, vcpu: Vcpu) -> None:
        """Set the registers. The vCPU must not be running; other registers keep their reset values."""
        sregs = vcpu.sregs
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = self.cr0, self.cr3, self.cr4, self.efer
        _load(sregs.cs, self.code)
        for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
            _load(segment, self.data)
        _load(sregs.tr, self.task)
        sregs.gdt.base, sregs.gdt.limit = address_map.GDT.start, len(self.gdt()) - 1
        sregs.idt.base, sregs.idt.limit = 0, 0
        vcpu.sregs = sregs
        regs = vcpu.regs
        regs.rip, regs.rsi, regs.rbx, regs.rsp = self.rip, self.rsi, self.rbx, self.rsp
        regs.rax = self.rax
        regs.rbp = regs.rdi = 0
        regs.rflags = RFLAGS_ALWAYS
        vcpu.regs = regs


def _load(target: Any, state: SegmentState) -> None:
    """Fill a struct kvm_segment."""
    target.base, target.limit, target.selector = 0, state.limit, state.selector
    target.type, target.s, target.db, target.l, target.g = state.type, state.s, state.db, state.l, state.g
    target.present, target.dpl, target.avl, target.unusable = 1, 0, 0, 0


@dataclass(slots=True)
class RealMode:
    """The first vCPU as firmware leaves it when a suspended machine wakes up: in real mode, at the waking vector."""

    vector: int

    def apply(self, vcpu: Vcpu) -> None:
        """Set CS and RIP. The vCPU must not be running; other registers keep their reset values."""
        sregs, regs = vcpu.sregs, vcpu.regs
        sregs.cs.selector, sregs.cs.base = self.vector >> 4 & 0xFFFF, self.vector & 0xFFFF0
        regs.rip = self.vector & 0xF
        vcpu.sregs, vcpu.regs = sregs, regs


def long_mode(rip: int) -> BootState:
    """Return the state for the 64-bit entry: paging on, RSI at the zero page."""
    state = BootState(
        rip=rip,
        rsi=address_map.ZERO_PAGE.start,
        cr0=CR0_PE | CR0_ET | CR0_PG,
        cr3=address_map.PAGE_TABLES.start,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
    )
    state.code.l, state.code.db = 1, 0
    return state


def protected_mode(rip: int) -> BootState:
    """Return the state for PVH and Multiboot: 32-bit protected mode without paging, EBX at the start information."""
    return BootState(rip=rip, rbx=address_map.START_INFO.start)


def page_tables() -> bytes:
    """Return an identity map of the first 4 GiB in 2 MiB pages, to be written at address_map.PAGE_TABLES.

    One PML4, one page directory pointer table, four page directories. 1 GiB pages would take a third of that, but
    not every processor has them.
    """
    pointers = address_map.PAGE_TABLES.start + PAGE
    directories = pointers + PAGE
    table = PRESENT | WRITABLE
    top = pack("<Q", pointers | table).ljust(PAGE, b"\0")
    middle = pack(f"<{MAPPED_GIB}Q", *(directories + i * PAGE | table for i in range(MAPPED_GIB)))
    count = (MAPPED_GIB << 30) // LARGE_PAGE
    bottom = pack(f"<{count}Q", *range(table | LARGE, MAPPED_GIB << 30, LARGE_PAGE))
    return top + middle.ljust(PAGE, b"\0") + bottom
