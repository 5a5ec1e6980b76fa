"""First registers, GDT and page tables."""

from __future__ import annotations

import struct

from pyvmm import address_map
from pyvmm.firmware import entry
from pyvmm.kvm.structs import Regs, Sregs


class FakeVcpu:
    def __init__(self) -> None:
        self.regs = Regs()
        self.sregs = Sregs()


def translate(address: int) -> int:
    """Walk the page tables as the processor would."""
    tables = entry.page_tables()

    def item(gpa: int, index: int) -> int:
        return int(struct.unpack_from("<Q", tables, gpa - address_map.PAGE_TABLES.start + index * 8)[0])

    table = address_map.PAGE_TABLES.start
    for shift in (39, 30, 21):
        found = item(table, address >> shift & 511)
        assert found & 3 == 3, f"{address:#x} not mapped"
        table = found & ~0xFFF
    assert found & entry.LARGE
    return found & ~0x1FFFFF | address & 0x1FFFFF


def test_page_tables_map_each_address_below_4_gib_to_itself() -> None:
    for address in (0, 0x7000, 0x1000000, 0x7FFFFFFF, 0xC0000000, 0xFFFFFFFF):
        assert translate(address) == address


def test_page_tables_stay_below_the_command_line() -> None:
    assert address_map.PAGE_TABLES.start + len(entry.page_tables()) <= address_map.CMDLINE.start


def test_gdt_has_flat_segments() -> None:
    descriptors = struct.unpack("<5Q", entry.long_mode(0).gdt())
    assert descriptors == (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067)
    assert struct.unpack("<5Q", entry.protected_mode(0).gdt())[2] == 0x00CF9B000000FFFF


def test_a_waking_machine_starts_in_real_mode_at_its_vector() -> None:
    vcpu = FakeVcpu()
    entry.RealMode(0x9A123).apply(vcpu)
    assert (vcpu.sregs.cs.selector, vcpu.sregs.cs.base, vcpu.regs.rip) == (0x9A12, 0x9A120, 3)


def test_64_bit_entry_runs_in_long_mode_with_rsi_at_the_zero_page() -> None:
    vcpu = FakeVcpu()
    entry.long_mode(0x1000200).apply(vcpu)
    assert (vcpu.regs.rip, vcpu.regs.rsi, vcpu.regs.rflags) == (0x1000200, address_map.ZERO_PAGE.start, 2)
    assert vcpu.sregs.cr0 == 0x80000011
    assert (vcpu.sregs.cr3, vcpu.sregs.cr4, vcpu.sregs.efer) == (address_map.PAGE_TABLES.start, 0x20, 0x500)
    assert (vcpu.sregs.cs.selector, vcpu.sregs.cs.l, vcpu.sregs.cs.db) == (0x10, 1, 0)
    assert (vcpu.sregs.ss.selector, vcpu.sregs.ds.selector) == (0x18, 0x18)
    assert (vcpu.sregs.gdt.base, vcpu.sregs.gdt.limit) == (address_map.GDT.start, 39)


def test_pvh_entry_runs_in_32_bit_mode_with_rbx_at_the_start_info() -> None:
    vcpu = FakeVcpu()
    vcpu.sregs.efer = 0x500  # left over, as after a reset of a running guest
    entry.protected_mode(0x1000040).apply(vcpu)
    assert (vcpu.regs.rip, vcpu.regs.rbx) == (0x1000040, address_map.START_INFO.start)
    assert (vcpu.sregs.cr0, vcpu.sregs.cr4, vcpu.sregs.efer) == (0x11, 0, 0)
    assert (vcpu.sregs.cs.db, vcpu.sregs.cs.l, vcpu.sregs.cs.limit) == (1, 0, 0xFFFFFFFF)
    assert (vcpu.sregs.tr.type, vcpu.sregs.tr.limit) == (11, 0x67)
