"""Tiny guests: a few bytes of machine code each, on whatever /dev/kvm there is."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import pack_into

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import Cap, Exit, Hlt, Interrupted, Kvm, Segment, Vcpu, Vm

RAM = 0x20000
ENTRY = 0x1000
STACK = 0x8000
PAGE_TABLES = 0x10000
GUEST_SPIN_LIMIT = 10_000  # exits after which a test gives up


@pytest.fixture(scope="session")
def kvm() -> Iterator[Kvm]:
    """The host's KVM, or a skip that says what is missing."""
    try:
        handle = Kvm()
    except HostError as error:
        pytest.skip(str(error))
    with handle:
        yield handle


@dataclass
class TinyGuest:
    """A VM of one vCPU with its code at ENTRY, ready to run in real mode."""

    vm: Vm
    vcpu: Vcpu
    ram: mmap.mmap
    address: int
    _pin: object = field(repr=False)

    def need(self, *caps: Cap) -> None:
        """Skip the test, naming the capability this KVM lacks."""
        missing = [cap.name for cap in caps if not self.vm.check(cap)]
        if missing:
            pytest.skip(f"this KVM lacks KVM_CAP_{', KVM_CAP_'.join(missing)}")

    def until_halt(self) -> list[Exit]:
        """All exits up to HLT, which is left out."""
        seen: list[Exit] = []
        for _ in range(GUEST_SPIN_LIMIT):
            match self.vcpu.run():
                case Hlt():
                    return seen
                case Interrupted():
                    pass
                case exit:
                    seen.append(exit)
        raise AssertionError(f"the guest never halted; its last exits: {seen[-5:]}")

    def vector(self, number: int, code: bytes, at: int) -> None:
        """Put an interrupt handler into the real-mode vector table."""
        pack_into("<HH", self.ram, number * 4, at, 0)
        self.ram[at : at + len(code)] = code

    def enable_lapic(self) -> None:
        """What a guest does by writing the spurious-interrupt vector register."""
        lapic = self.vcpu.get_lapic()
        lapic.regs[0xF0], lapic.regs[0xF1] = 0xFF, 0x01
        self.vcpu.set_lapic(lapic)

    def long_mode(self) -> None:
        """64-bit mode with the first GiB mapped as it is."""
        pack_into("<Q", self.ram, PAGE_TABLES, PAGE_TABLES + 0x1003)
        pack_into("<Q", self.ram, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2003)
        for n in range(512):
            pack_into("<Q", self.ram, PAGE_TABLES + 0x2000 + 8 * n, n << 21 | 0x83)
        sregs = self.vcpu.sregs
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000011, PAGE_TABLES, 0x20, 0x500
        sregs.cs = Segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
        data = Segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, s=1, db=1, g=1)
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
        self.vcpu.sregs = sregs


MakeGuest = Callable[..., TinyGuest]


@pytest.fixture
def make_guest(kvm: Kvm) -> Iterator[MakeGuest]:
    """Makes guests: `make_guest("F4")`, with `irqchip=True` for in-kernel interrupt controllers."""
    vms: list[Vm] = []

    def make(code: str, *, irqchip: bool = False) -> TinyGuest:
        vm = kvm.create_vm()
        vms.append(vm)
        if irqchip:
            vm.create_irqchip()
        ram = mmap.mmap(-1, RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        program = bytes.fromhex(code)
        ram[ENTRY : ENTRY + len(program)] = program
        pin = ctypes.c_char.from_buffer(ram)
        vm.set_memory(0, 0, RAM, ctypes.addressof(pin))
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(kvm.supported_cpuid())
        sregs = vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.sregs = sregs
        regs = vcpu.regs
        regs.rip, regs.rsp, regs.rflags = ENTRY, STACK, 2
        vcpu.regs = regs
        return TinyGuest(vm, vcpu, ram, ctypes.addressof(pin), pin)

    yield make
    for vm in vms:
        vm.close()
