"""Solutions to the exercises of chapter 6."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch04_long_mode import MEMORY, boot

from pyvmm.hyperv import cpuid
from pyvmm.hyperv.tlfs import FIRST_MSR, MSR_RANGE, Access
from pyvmm.images.kernel_assembler import KernelAssembler
from pyvmm.kvm import Cap, Exit, Hlt, Kvm, MsrExitReason, MsrRange, Rdmsr, Shutdown
from pyvmm.memory import GuestMemory


def exits(a: KernelAssembler, names: list[str]) -> list[Exit]:
    """Run a guest that finds Hyper-V; refuse all its MSRs; return its exits."""
    memory, seen = GuestMemory.flat(MEMORY), []
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitReason.FILTER)
        vm.set_msr_filter([MsrRange.deny(FIRST_MSR, MSR_RANGE)])
        host = [leaf for leaf in kvm.supported_cpuid() if leaf.function >> 16 != 0x4000]
        vcpu = boot(vm, memory, a.build(), host + cpuid.leaves(cpuid.Offer.of(names), 1))
        while not seen or not isinstance(seen[-1], Hlt | Shutdown):
            seen.append(vcpu.run())
            if isinstance(seen[-1], Rdmsr):
                seen[-1].fault()
    return seen


def said_leaf(leaf: int, names: list[str]) -> bytes:
    """EAX of a leaf, as the guest reads it."""
    a = KernelAssembler()
    a.cpuid(leaf)
    a.out(0x10, size=4)
    a.halt()
    return exits(a, names)[0].data


def exercise_1() -> None:
    """The interface."""
    assert said_leaf(0x40000001, ["vpindex", "synic"]) == b"Hv#1"


def exercise_2() -> None:
    """One bit more."""
    few = int.from_bytes(said_leaf(0x40000003, ["vpindex", "synic"]), "little")
    more = int.from_bytes(said_leaf(0x40000003, ["vpindex", "synic", "reset"]), "little")
    assert few ^ more == Access.RESET == 1 << 7


def exercise_3() -> None:
    """A refused MSR."""
    a = KernelAssembler()
    a.read_msr(FIRST_MSR + 2)
    a.halt()
    first, last = exits(a, ["vpindex"])
    assert isinstance(first, Rdmsr) and last == Shutdown()


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
