"""Chapter 7: guest and host exchange messages, by a hypercall and a page of slots."""

from ch04_long_mode import MEMORY, boot

from pyvmm.hyperv.tlfs import VMBUS_SINT, MessageType
from pyvmm.hyperv.user import UserEngine
from pyvmm.images.hyperv_assembler import PAYLOAD, HypervAssembler
from pyvmm.kvm import Hlt, Interrupted, IoOut, Kvm
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory


def program() -> bytes:
    """Post a question, wait for the answer, say its first four bytes."""
    a = HypervAssembler()
    a.enable_hyperv()
    a.post_message("question")
    a.wait_for_message("wait")
    a.load("rax", "rdi", PAYLOAD, 4)
    a.out(0x10, size=4)
    a.free_slot()
    a.halt()
    a.message("question", 4, b"How many?")
    return a.build()


class HypervGuest:
    """A guest of one vCPU on Hyper-V: `engine` is its hypervisor. It has no interrupt controller, and polls."""

    def __init__(self, kvm: Kvm, code: bytes) -> None:
        self.memory, self.loop, self.vm = GuestMemory.flat(MEMORY), Loop(), kvm.create_vm()
        self.engine = UserEngine(1, self.memory, self.loop)
        self.engine.setup_vm(self.vm)
        host = [leaf for leaf in kvm.supported_cpuid() if leaf.function >> 16 != 0x4000]
        self.vcpu = boot(self.vm, self.memory, code, host + self.engine.cpuid())

    def run(self) -> bytes:
        """Run until the guest halts; return what it said. After each exit the host's loop does its work."""
        said = b""
        while not isinstance(exit := self.vcpu.run(), Hlt | Interrupted):
            if isinstance(exit, IoOut) and exit.port == 0x10:
                said += exit.data
            elif not self.engine.handle(self.vcpu, 0, exit):
                raise SystemExit(f"the guest ended with {exit}")
            while not self.loop.idle:
                self.loop.step(0)
        return said


if __name__ == "__main__":
    with Kvm() as kvm:
        guest, delivered = HypervGuest(kvm, program()), []

        def answer(connection: int, kind: int, payload: bytes) -> int:
            print(f"the guest asks on connection {connection}: {payload.decode()}")
            guest.loop.post(guest.engine.post_message, 0, VMBUS_SINT, MessageType.VMBUS, b"four", delivered.append)
            return 0  # HV_STATUS_SUCCESS

        guest.engine.listen(answer)
        print(f"the guest was told: {guest.run().decode()}")
