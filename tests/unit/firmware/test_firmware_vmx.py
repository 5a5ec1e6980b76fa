"""The first registers against the checks that VMX makes at VM entry: SVM, which runs the tests' guests, makes few.

Source: Intel SDM vol. 3, "Checks on Guest Control Registers, Debug Registers, and MSRs", "Checks on Guest Segment
Registers", "Checks on Guest Descriptor-Table Registers". A state that fails is emulated by KVM, instruction by
instruction, or ends in FailEntry.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.firmware.entry import BootState, long_mode, protected_mode

PE, ET, NE, PG = 1, 1 << 4, 1 << 5, 1 << 31
PAE = 1 << 5
LME, LMA = 1 << 8, 1 << 10


class Vcpu:
    """Registers as KVM leaves them after reset."""

    def __init__(self) -> None:
        segments = {
            name: SimpleNamespace(
                base=0, limit=0xFFFF, selector=0, type=3, present=1, dpl=0, db=0, s=1, l=0, g=0, avl=0, unusable=0
            )
            for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
        }
        segments["ldt"].type, segments["ldt"].s = 2, 0
        tables = {name: SimpleNamespace(base=0, limit=0xFFFF) for name in ("gdt", "idt")}
        self.sregs: Any = SimpleNamespace(cr0=0x60000010, cr3=0, cr4=0, efer=0, **segments, **tables)
        self.regs: Any = SimpleNamespace(rip=0xFFF0, rsi=0, rbx=0, rsp=0, rbp=0, rdi=0, rflags=2)


@pytest.fixture(params=[long_mode, protected_mode], ids=["64", "pvh"])
def vcpu(request: pytest.FixtureRequest) -> Any:
    state: BootState = request.param(0x1000000)
    made = Vcpu()
    state.apply(made)  # type: ignore[arg-type]
    return made


def is_long(vcpu: Any) -> bool:
    return bool(vcpu.sregs.efer & LMA)


def test_control_registers_agree(vcpu: Any) -> None:
    sregs = vcpu.sregs
    assert not sregs.cr0 & PG or sregs.cr0 & PE
    assert bool(sregs.efer & LMA) == bool(sregs.efer & LME and sregs.cr0 & PG)
    assert not is_long(vcpu) or sregs.cr4 & PAE
    assert not sregs.cr3 >> 36, "not every processor has more physical address bits"


def test_flags_and_rip(vcpu: Any) -> None:
    assert vcpu.regs.rflags & 2
    assert not vcpu.regs.rflags & (1 << 3 | 1 << 5 | 1 << 15 | 1 << 17)
    assert is_long(vcpu) or not vcpu.regs.rip >> 32
    assert not vcpu.regs.rip >> 47


@pytest.mark.parametrize("name", ["cs", "ss", "ds", "es", "fs", "gs"])
def test_code_and_data_segments(vcpu: Any, name: str) -> None:
    sregs = vcpu.sregs
    segment = getattr(sregs, name)
    assert not segment.unusable
    assert segment.present and segment.s
    assert segment.type & 1, "accessed"
    assert segment.dpl == segment.selector & 3 == sregs.cs.selector & 3 == 0
    if name == "cs":
        assert segment.type in (9, 11, 13, 15)
        assert not (is_long(vcpu) and segment.l and segment.db)
        assert bool(segment.l) == is_long(vcpu)
    else:
        assert segment.type in ((3, 7) if name == "ss" else range(1, 16, 2))
        assert not segment.type & 8 or segment.type & 2, "code is readable"
    limit_is_granular(segment)


def limit_is_granular(segment: Any) -> None:
    assert segment.limit & 0xFFF == 0xFFF or not segment.g
    assert not segment.limit >> 20 or segment.g


def test_task_register(vcpu: Any) -> None:
    task = vcpu.sregs.tr
    assert task.type == 11, "a busy TSS; 3 too in 32-bit mode"
    assert (task.s, task.present, task.unusable, task.selector & 4) == (0, 1, 0, 0)
    limit_is_granular(task)


def test_local_descriptor_table(vcpu: Any) -> None:
    table = vcpu.sregs.ldt
    assert table.unusable or (table.type, table.s, table.present, table.selector & 4) == (2, 0, 1, 0)


@pytest.mark.parametrize("name", ["gdt", "idt"])
def test_descriptor_tables(vcpu: Any, name: str) -> None:
    table = getattr(vcpu.sregs, name)
    assert not table.base >> 47
    assert not table.limit >> 16
