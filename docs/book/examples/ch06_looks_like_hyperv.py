"""Chapter 6: a guest asks its CPU who made it, and finds Hyper-V."""

from ch04_long_mode import MEMORY, boot

from pyvmm.hyperv import cpuid
from pyvmm.hyperv.tlfs import FIRST_MSR, MSR_RANGE, Msr
from pyvmm.images.kernel_assembler import KernelAssembler
from pyvmm.kvm import Cap, Hlt, IoOut, Kvm, MsrExitReason, MsrRange, Rdmsr, Wrmsr
from pyvmm.memory import GuestMemory

LINUX = 0x8100 << 48  # "I am Linux": what a guest writes into the MSR GUEST_OS_ID
PORT = 0x10


def program() -> bytes:
    """Say the vendor's name; tell the hypervisor who we are; ask for the number of this processor."""
    a = KernelAssembler()
    a.cpuid(0x40000000)
    for register in ("rbx", "rcx", "rdx"):
        a.move("rax", register)
        a.out(PORT, size=4)
    a.write_msr(Msr.GUEST_OS_ID, LINUX)
    a.read_msr(Msr.VP_INDEX)
    a.halt()
    return a.build()


def main() -> None:
    said, registers = b"", {Msr.GUEST_OS_ID: 0, Msr.VP_INDEX: 0}
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitReason.FILTER)
        vm.set_msr_filter([MsrRange.deny(FIRST_MSR, MSR_RANGE)])  # these accesses become exits
        host = [leaf for leaf in kvm.supported_cpuid() if leaf.function >> 16 != 0x4000]  # not KVM's name
        hyperv = cpuid.leaves(cpuid.Offer.of(["vpindex", "synic"]), vp_count=1)
        memory = GuestMemory.flat(MEMORY)  # in a variable: it lives as long as the VM
        vcpu = boot(vm, memory, program(), host + hyperv)
        while not isinstance(exit := vcpu.run(), Hlt):
            match exit:
                case IoOut(data=data):
                    said += data
                case Wrmsr(index=index, value=value) if index in registers:
                    print(f"wrmsr {Msr(index).name} = {value:#x}")
                    registers[Msr(index)] = value
                    exit.ok()
                case Rdmsr(index=index) if index in registers:
                    print(f"rdmsr {Msr(index).name}: {registers[Msr(index)]:#x}")
                    exit.reply(registers[Msr(index)])
                case Rdmsr() | Wrmsr():
                    exit.fault()  # the guest gets #GP, a general protection fault
                case other:
                    raise SystemExit(f"the guest ended with {other}")
    print(f"the guest says that it runs on {said.decode()!r}")


if __name__ == "__main__":
    main()
