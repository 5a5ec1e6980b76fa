"""Chapter 5: two vCPUs sleep in threads of their own until interrupts wake them; a loop counts."""

import signal
import threading

from ch02_memory import Tiny

from pyvmm.kvm import IoOut, Kvm, MpState, Vcpu
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory

VECTOR, HANDLER, ROUNDS = 0x40, 0x3000, 10
LOCAL_APICS = 0xFEE00000  # a write here is an interrupt; bits 12 to 19 of the address name the vCPU
WAIT = bytes.fromhex("FB F4 EB FC")  # sti; again: hlt; jmp again
HANDLE = bytes.fromhex("E6 10 66 B9 0B 08 00 00 66 31 C0 66 31 D2 0F 30 CF")
# out 0x10, al; mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iret      MSR 0x80b: end of interrupt


def switch_on_apic(kvm: Kvm, vcpu: Vcpu) -> None:
    """As an operating system does: the registers of the local APIC are MSRs, and it takes interrupts."""
    vcpu.set_cpuid(kvm.supported_cpuid())
    vcpu.set_msrs({0x1B: vcpu.get_msrs([0x1B])[0x1B] | 1 << 10, 0x80F: 0x1FF})
    vcpu.mp_state = MpState.RUNNABLE  # all but the first vCPU would wait for a start signal


def main(kvm: Kvm) -> list[int]:
    vm, loop, memory, order = kvm.create_vm(), Loop(), GuestMemory.flat(0x10000), []

    def woken(number: int) -> None:
        order.append(number)
        if len(order) == ROUNDS:
            loop.stop()
        vm.signal_msi(LOCAL_APICS | (1 - number) << 12, VECTOR)  # wake the other one

    def run(vcpu: Vcpu) -> None:
        while not vcpu.immediate_exit:
            if isinstance(vcpu.run(), IoOut):
                loop.post(woken, vcpu.id)

    vm.create_irqchip()
    Tiny(vm, memory, WAIT).add_vcpu(1)
    memory.write(4 * VECTOR, HANDLER.to_bytes(4, "little"))  # real mode's table of handlers
    memory.write(HANDLER, HANDLE)
    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in vm.vcpus]
    for vcpu, thread in zip(vm.vcpus, threads, strict=True):
        switch_on_apic(kvm, vcpu)
        thread.start()
    vm.signal_msi(LOCAL_APICS, VECTOR)
    loop.run()
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    for vcpu, thread in zip(vm.vcpus, threads, strict=True):
        vcpu.immediate_exit = True  # first, for a vCPU that is about to enter the guest
        signal.pthread_kill(thread.ident, signal.SIGUSR1)  # then, for one that is inside
        thread.join()
    return order


if __name__ == "__main__":
    print("woken, in this order:", *main(Kvm()))
