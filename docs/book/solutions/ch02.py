"""Solutions to the exercises of chapter 2."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch02_memory import CODE, KIB, Tiny

from pyvmm.kvm import Hlt, Kvm
from pyvmm.memory import GuestMemory, HostMemory, Region


def exercise_1() -> None:
    """Memory at 0x10000."""
    regions = [Region(gpa, 64 * KIB, HostMemory(64 * KIB)) for gpa in (0, 0x10000, 0x20000)]
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, GuestMemory(regions), CODE)
        assert guest.vcpu.run() == Hlt()
        assert guest.memory.read(0x20000, 2) == b"A\0"
        assert guest.memory.read(0x10010, 1) == b"B"


def exercise_2() -> None:
    """One piece of host memory at two addresses."""
    shared = HostMemory(64 * KIB)
    regions = [
        Region(0, 64 * KIB, HostMemory(64 * KIB)),
        Region(0x10000, 64 * KIB, shared),
        Region(0x20000, 64 * KIB, shared),
    ]
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, GuestMemory(regions), CODE)
        assert guest.vcpu.run() == Hlt()
        assert guest.memory.read(0x20010, 1) == b"B"  # stored at 0x10010


def exercise_3() -> None:
    """The pages that the guest wrote."""
    regions = [Region(gpa, 64 * KIB, HostMemory(64 * KIB)) for gpa in (0, 0x10000, 0x20000)]
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = Tiny(vm, GuestMemory(regions), CODE)
        last = regions[2]
        vm.set_memory(2, 0, 0, 0)  # a slot is changed by deleting it first
        vm.set_memory(2, last.gpa, last.size, last.address, log_dirty=True)
        assert guest.vcpu.run() == Hlt()
        assert vm.dirty_log(2)[0] == 0b1  # the first page of the slot, and no other


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
