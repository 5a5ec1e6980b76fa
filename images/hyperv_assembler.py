"""The assembler for guests without an operating system that talk to Hyper-V: hypercalls and messages.

Source: TLFS sections 3 and 11; Linux drivers/hv/hv.c. The guest polls; it never takes an interrupt.
"""

from __future__ import annotations

from pyvmm.hyperv.tlfs import (
    MESSAGE_SIZE,
    VMBUS_SINT,
    HypercallCode,
    MessageType,
    Msr,
    PostMessageInput,
    SignalEventInput,
)
from pyvmm.images.assembler import At, Operand
from pyvmm.images.kernel_assembler import KernelAssembler

HYPERCALL_PAGE, MESSAGE_PAGE, EVENT_PAGE = 0x200000, 0x201000, 0x202000
"""Pages of the guest's own that it hands to the hypervisor."""
SLOT = MESSAGE_PAGE + VMBUS_SINT * MESSAGE_SIZE
"""Where messages for the VMBus arrive: type u32, size u8, flags u8, u16, sender u64, payload."""
PAYLOAD = 16
LINUX = 0x8100 << 48
"""What Linux says in GUEST_OS_ID, without its version."""
VECTOR = 0xF3


class HypervAssembler(KernelAssembler):
    """Collects instructions. Hypercalls change rax, rcx, rdx and r8."""

    def enable_hyperv(self) -> None:
        """Introduce the guest, and hand out a page for the hypervisor's code, one for messages and one for events."""
        self.write_msr(Msr.GUEST_OS_ID, LINUX)
        self.write_msr(Msr.HYPERCALL, HYPERCALL_PAGE | 1)
        self.write_msr(Msr.SIMP, MESSAGE_PAGE | 1)
        self.write_msr(Msr.SIEFP, EVENT_PAGE | 1)
        self.write_msr(Msr.SCONTROL, 1)
        self.write_msr(Msr.SINT0 + VMBUS_SINT, VECTOR)

    def hypercall(self, code: int, rdx: Operand) -> None:
        """Call the hypervisor's page; the status is in rax."""
        self.move("rdx", rdx)
        self.move("rcx", code)
        self.move("r8", 0)
        self.move("rax", HYPERCALL_PAGE)
        self.call_address("rax")

    def post_message(self, label: str) -> None:
        """HvPostMessage of the block at a label."""
        self.hypercall(HypercallCode.POST_MESSAGE, At(label))

    def signal(self, connection: int) -> None:
        """HvSignalEvent, with its input in a register ("fast")."""
        self.hypercall(
            HypercallCode.SIGNAL_EVENT | 1 << 16, int.from_bytes(SignalEventInput(connection, 0, 0).build(), "little")
        )

    def wait_for_message(self, name: str) -> None:
        """Look at the slot until a message lies there; its address is in rdi. `name`: of a new label."""
        self.move("rdi", SLOT)
        self.label(name)
        self.load("rax", "rdi", 0, 4)
        self.compare("rax", 0)
        self.jump(name, "e")

    def free_slot(self) -> None:
        """Make room for the next message, and tell the hypervisor so. Changes rax, rcx and rdx."""
        self.store(0, 0, 4, base="rdi")
        self.write_msr(Msr.EOM, 0)

    def message(self, label: str, connection: int, payload: bytes) -> None:
        """Place the input block of HvPostMessage, which may not cross a page."""
        self.align(256)
        head = PostMessageInput(connection, 0, MessageType.VMBUS, len(payload))
        self.data(label, (head.build() + payload).ljust(256, b"\0"))
