"""Solutions to the exercises of chapter 5."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from ch02_memory import ENTRY, Tiny
from ch05_interrupts import HANDLE, HANDLER, LOCAL_APICS, VECTOR, WAIT, switch_on_apic

from pyvmm.kvm import Interrupted, IoOut, Kvm, Vm
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory


def waiting_guest(kvm: Kvm, vm: Vm) -> Tiny:
    """One vCPU that waits for interrupts."""
    vm.create_irqchip()
    guest = Tiny(vm, GuestMemory.flat(0x10000), WAIT)
    guest.memory.write(4 * VECTOR, HANDLER.to_bytes(4, "little"))
    guest.memory.write(HANDLER, HANDLE)
    switch_on_apic(kvm, guest.vcpu)
    return guest


def exercise_1() -> None:
    """Two vectors."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = waiting_guest(kvm, vm)
        other = HANDLER + 0x100
        guest.memory.write(4 * 0x41, other.to_bytes(4, "little"))
        guest.memory.write(other, HANDLE.replace(b"\xe6\x10", b"\xe6\x11", 1))
        for vector in (0x40, 0x41):
            vm.signal_msi(LOCAL_APICS, vector)
        exits = [guest.vcpu.run(), guest.vcpu.run()]
        assert sorted(exit.port for exit in exits) == [0x10, 0x11]


def exercise_2() -> None:
    """The flag, without a signal."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest = waiting_guest(kvm, vm)
        guest.vcpu.immediate_exit = True
        assert guest.vcpu.run() == Interrupted()
        assert guest.vcpu.regs.rip == ENTRY


def exercise_3() -> None:
    """The first interrupt by a timer."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        guest, loop = waiting_guest(kvm, vm), Loop()

        def ring() -> None:
            vm.signal_msi(LOCAL_APICS, VECTOR)
            loop.stop()

        began = loop.clock()
        loop.after(0.05, ring)
        loop.run()
        assert loop.clock() - began >= 0.05
        assert guest.vcpu.run() == IoOut(0x10, 1, 1, b"\0")


if __name__ == "__main__":
    exercise_1()
    exercise_2()
    exercise_3()
