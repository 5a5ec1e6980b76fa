"""The instructions of the tiny guest, in the order in which it does things.

rbp is DATA all the time. The guest runs with interrupts off and lets them in only where it waits, in HLT; the handler
goes on at the address in r15, so that it needs no IRET and no code to save registers.
"""

from __future__ import annotations

from typing import Final

from pyvmm import address_map
from pyvmm.devices.balloon import protocol as dm
from pyvmm.firmware.acpi import S5_SLEEP_TYPE
from pyvmm.hyperv.tlfs import EVENT_FLAGS_SIZE, HypercallCode, HypercallControl, MessageHeader, Msr, SintValue
from pyvmm.images.assembler import At
from pyvmm.images.kernel_assembler import KernelAssembler
from pyvmm.images.tiny import data
from pyvmm.images.tiny.data import AT, DATA, IN_RING, MESSAGES, OUT_RING, PACKETS, SLOT, place
from pyvmm.memory import PAGE_SIZE
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import PacketHeader
from pyvmm.vmbus.ring import READ_INDEX, WRITE_INDEX

APIC_BASE, X2APIC_SPURIOUS_VECTOR = 0x1B, 0x80F
X2APIC_ON: Final = address_map.LOCAL_APIC.start | 1 << 11 | 1 << 10 | 1 << 8
FLAGS: Final = data.SIEFP + vmbus.SINT * EVENT_FLAGS_SIZE
"""The first 64 event flags of the VMBus's SINT: as many devices as this guest can have."""
MESSAGE: Final = SLOT + MessageHeader.SIZE
HEAD: Final = 16  # bytes before the message in the input of HvPostMessage
PAYLOAD: Final = PacketHeader.SIZE


class Kernel(KernelAssembler):
    """Waiting by interrupts, Hyper-V's calls, the VMBus's messages and packets."""

    def load_idt(self, offset: int) -> None:
        """Load the address of the interrupt table from [rbp + offset]."""
        self._memory(b"\x0f\x01", 3, "rbp", offset)

    def wait_for_interrupt(self) -> None:
        """Let interrupts in and halt; the handler goes on behind this, with interrupts off again."""
        label = f"woken {len(self._code)}"
        self.move("r15", At(label))
        self._code += b"\xfb\xf4"  # sti; hlt
        self.label(label)

    def handler(self) -> None:
        """The interrupt handler. The SINT ends the interrupt by itself (auto-EOI)."""
        self.label("handler")
        self.address("rsp", "rbp", data.STACK)
        self._code += b"\x41\xff\xe7"  # jmp r15

    def hypercall(self, code: HypercallCode, *, fast: bool = False) -> None:
        """Call the hypercall page; the input is in rdx, or its address."""
        self.move("rcx", HypercallControl(0).replace(code=code, fast=int(fast)))
        self.move("r8", 0)
        self.address("rax", "rbp", data.HYPERCALL_PAGE)
        self.call_address("rax")

    def post(self, name: str) -> None:
        """Send one of the prepared messages to the VMBus."""
        self.address("rdx", "rbp", AT[name])
        self.hypercall(HypercallCode.POST_MESSAGE)

    def receive(self, name: str) -> None:
        """Wait until a message lies in the slot; its type is in rax."""
        self.label(f"{name}?")
        self.load("rax", "rbp", SLOT, 4)
        self.compare("rax", 0)
        self.jump(f"{name}!", "ne")
        self.wait_for_interrupt()
        self.jump(f"{name}?")
        self.label(f"{name}!")
        self.load("rax", "rbp", MESSAGE, 4)

    def free_slot(self) -> None:
        """Free the slot, and tell Hyper-V so: another message may wait for it."""
        self.store(SLOT, 0, 4)
        self.write_msr(Msr.EOM, 0)

    def send(self, name: str) -> None:
        """Put one of the prepared packets into the ring, and signal the channel."""
        size = len(PACKETS[name])
        self.address("rsi", "rbp", AT[name])
        self.load("rbx", "rbp", OUT_RING + 4 * WRITE_INDEX, 4)
        self.address("rdi", "rbp", OUT_RING + PAGE_SIZE)
        self.add("rdi", "rbx")
        self.move("rcx", size)
        self.copy_bytes()
        self.add("rbx", size)
        self.store(OUT_RING + 4 * WRITE_INDEX, "rbx", 4)
        self.move("rdx", "r12")  # the channel's connection; flag 0
        self.hypercall(HypercallCode.SIGNAL_EVENT, fast=True)

    def next_packet(self, name: str) -> None:
        """Wait for the host's next packet. rbx: where it begins; rax: the type of the balloon's message in it."""
        self.label(f"{name}?")
        self.store(FLAGS, 0)  # before the look: a flag that is still set raises no further interrupt
        self.load("rax", "rbp", IN_RING + 4 * READ_INDEX, 4)
        self.load("rcx", "rbp", IN_RING + 4 * WRITE_INDEX, 4)
        self.compare("rax", "rcx")
        self.jump(f"{name}!", "ne")
        self.wait_for_interrupt()
        self.jump(f"{name}?")
        self.label(f"{name}!")
        self.address("rbx", "rbp", IN_RING + PAGE_SIZE)
        self.add("rbx", "rax")
        self.load("rcx", "rbx", place(PacketHeader, "length8"), 2)
        self.shift_left("rcx", 3)
        self.add("rax", "rcx")
        self.add("rax", 8)  # the trailer
        self.store(IN_RING + 4 * READ_INDEX, "rax", 4)
        self.load("rax", "rbx", PAYLOAD, 2)


def program() -> tuple[bytes, int]:
    """Return the machine code, and the offset of its interrupt handler."""
    a = Kernel()
    _enable_hyperv(a)
    _find_balloon(a)
    _open_channel(a)
    _negotiate(a)
    _serve_balloon(a)
    _leave(a)
    a.handler()
    code = a.build()
    return code, a.offset("handler")


def _enable_hyperv(a: Kernel) -> None:
    """Give Hyper-V the pages: for hypercalls, messages and event flags; SINT 2 raises VECTOR."""
    a.move("rbp", DATA)
    a.address("rsp", "rbp", data.STACK)
    a.load_idt(data.IDT_POINTER)
    a.write_msr(APIC_BASE, X2APIC_ON)
    a.write_msr(X2APIC_SPURIOUS_VECTOR, 0x1FF)
    a.write_msr(Msr.GUEST_OS_ID, 0x8100_0000_0000_0000)  # an open-source system of no known kind
    a.write_msr(Msr.HYPERCALL, DATA + data.HYPERCALL_PAGE | 1)
    a.write_msr(Msr.SIMP, DATA + data.SIMP | 1)
    a.write_msr(Msr.SIEFP, DATA + data.SIEFP | 1)
    a.write_msr(Msr.SINT0 + vmbus.SINT, SintValue(0).replace(vector=data.VECTOR, auto_eoi=1))
    a.write_msr(Msr.SCONTROL, 1)


def _find_balloon(a: Kernel) -> None:
    """Contact the VMBus and look through its offers. r13: the balloon's relid, r12: its connection."""
    a.post("contact")
    a.receive("version")
    a.free_slot()
    a.post("offers")
    a.label("next offer")
    a.receive("offer")
    a.compare("rax", vmbus.MessageType.ALL_OFFERS_DELIVERED)
    a.jump("all offers", "e")
    a.load("rax", "rbp", MESSAGE + place(vmbus.OfferChannel, "device_type"), 4)
    a.compare("rax", data.BALLOON_TYPE.fields[0])  # its first four bytes are enough
    a.jump("not the balloon", "ne")
    a.load("r13", "rbp", MESSAGE + place(vmbus.OfferChannel, "relid"), 4)
    a.load("r12", "rbp", MESSAGE + place(vmbus.OfferChannel, "connection_id"), 4)
    a.label("not the balloon")
    a.free_slot()
    a.jump("next offer")
    a.label("all offers")
    a.free_slot()
    for name, cls in (
        ("gpadl", vmbus.GpadlHeader),
        ("open", vmbus.OpenChannel),
        ("close", vmbus.CloseChannel),
        ("teardown", vmbus.GpadlTeardown),
    ):
        assert name in MESSAGES
        a.store(AT[name] + HEAD + place(cls, "relid"), "r13", 4)


def _open_channel(a: Kernel) -> None:
    """Lend the host the pages of two rings, and open the channel."""
    a.post("gpadl")
    a.receive("gpadl created")
    a.free_slot()
    a.post("open")
    a.receive("open result")
    a.free_slot()


def _negotiate(a: Kernel) -> None:
    """Agree on a version of Dynamic Memory, and say what this guest can do."""
    a.send("version")
    a.next_packet("version response")
    a.send("capabilities")
    a.next_packet("capabilities response")


def _serve_balloon(a: Kernel) -> None:
    """Give away as many pages as the host asks for; stop when it gives some back."""
    a.label("serve")
    a.next_packet("request")
    a.compare("rax", dm.MessageType.BALLOON_REQUEST)
    a.jump("release", "e")
    a.compare("rax", dm.MessageType.UNBALLOON_REQUEST)
    a.jump("take back", "e")
    a.jump("serve")
    a.label("release")
    a.load("rax", "rbx", PAYLOAD + place(dm.BalloonRequest, "pages"), 4)
    a.shift_left("rax", dm.PAGE_COUNT_SHIFT)
    a.add("rax", data.SPARE_FRAME)
    a.store(AT["released"] + PAYLOAD + dm.RANGES_AT, "rax", 8)
    a.send("released")
    a.jump("serve")
    a.label("take back")
    a.load("rax", "rbx", PAYLOAD + place(dm.UnballoonRequestHead, "more"), 4)
    a.compare("rax", 1)
    a.jump("serve", "e")
    a.send("taken back")


def _leave(a: Kernel) -> None:
    """Close the channel, take the rings back, leave the bus, and power off."""
    a.post("close")
    a.post("teardown")
    a.receive("torn down")
    a.free_slot()
    a.post("unload")
    a.receive("unloaded")
    a.move("rax", S5_SLEEP_TYPE << 10 | 1 << 13)
    a.out(address_map.ACPI_PM.start + 4, 2)
    a.label("end")
    a.wait_for_interrupt()
    a.jump("end")
