"""Interrupts, eventfds and queued writes: what happens without an exit."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from pyvmm.kvm import (
    Cap,
    CoalescedWrite,
    Interrupted,
    IoOut,
    IrqchipId,
    IrqRoute,
    IrqWindowOpen,
    KvmError,
    MmioWrite,
    pc_routes,
)
from pyvmm.kvm.abi import RING_ENTRIES
from pyvmm.memory import HostMemory

pytestmark = pytest.mark.kvm

VECTOR = 0x40
WAIT = "FB F4 EB FC"  # sti; again: hlt; jmp again (with an irqchip KVM waits in the kernel)
HANDLER = bytes.fromhex("E6 10 CF")  # out 0x10, al; iret
RANG = IoOut(0x10, 1, 1, b"\0")


def quiet(vcpu) -> bool:
    """Whether the guest has nothing more to tell: it waits in the kernel until told to leave."""
    vcpu.immediate_exit = True
    exit = vcpu.run()
    vcpu.immediate_exit = False
    return exit == Interrupted()


def test_an_msi_reaches_its_handler(make_guest) -> None:
    guest = make_guest(WAIT, irqchip=True)
    guest.need(Cap.SIGNAL_MSI)
    guest.vector(VECTOR, HANDLER, at=0x3000)
    guest.enable_lapic()
    assert guest.vm.signal_msi(0xFEE00000, VECTOR) > 0
    assert guest.vcpu.run() == RANG
    assert quiet(guest.vcpu)


def test_an_msi_to_a_disabled_apic_is_not_delivered(make_guest) -> None:
    guest = make_guest(WAIT, irqchip=True)
    assert guest.vm.signal_msi(0xFEE00000, VECTOR) <= 0


def test_an_msi_without_irqchip_says_what_is_missing(make_guest) -> None:
    with pytest.raises(KvmError, match=r"KVM_SIGNAL_MSI.*no in-kernel irqchip"):
        make_guest("F4").vm.signal_msi(0xFEE00000, VECTOR)


def test_an_irqfd_raises_the_line_it_is_routed_to(make_guest) -> None:
    guest = make_guest(WAIT, irqchip=True)
    guest.need(Cap.IRQFD)
    guest.vector(VECTOR, HANDLER, at=0x3000)
    guest.enable_lapic()
    guest.vm.set_routes([*pc_routes(), IrqRoute.msi(24, 0xFEE00000, VECTOR)])
    doorbell = os.eventfd(0)
    guest.vm.irqfd(doorbell, 24)
    os.eventfd_write(doorbell, 1)
    assert guest.vcpu.run() == RANG
    guest.vm.irqfd(doorbell, 24, assign=False)
    os.close(doorbell)


def test_a_resampled_line_reports_when_the_guest_ended_the_interrupt(make_guest) -> None:
    # Master PIC at vector 8, only line 5 unmasked; out 0x11, al; sti; hlt; out 0x12, al
    guest = make_guest(
        "B0 11 E6 20 B0 08 E6 21 B0 04 E6 21 B0 01 E6 21 B0 DF E6 21 31 C0 E6 11 FB F4 E6 12", irqchip=True
    )
    guest.need(Cap.IRQFD_RESAMPLE)
    guest.vector(13, bytes.fromhex("E6 10 B0 20 E6 20 CF"), at=0x3000)  # out 0x10, al; EOI to the PIC; iret
    doorbell, ended = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.irqfd(doorbell, 5, resample_fd=ended)
    assert guest.vcpu.run() == IoOut(0x11, 1, 1, b"\0")
    os.eventfd_write(doorbell, 1)
    assert guest.vcpu.run() == RANG
    with pytest.raises(BlockingIOError):
        os.eventfd_read(ended)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert os.eventfd_read(ended) == 1
    guest.vm.irqfd(doorbell, 5, resample_fd=ended, assign=False)
    os.close(doorbell)
    os.close(ended)


def test_without_irqchip_the_host_injects_when_the_window_opens(make_guest) -> None:
    guest = make_guest("E6 11 FB 90 90 EB FE")  # out 0x11, al; sti; nop; nop; jmp $
    guest.vector(VECTOR, HANDLER, at=0x3000)
    assert guest.vcpu.run() == IoOut(0x11, 1, 1, b"\0")
    assert not guest.vcpu.ready_for_interrupt
    guest.vcpu.request_interrupt_window = True
    assert guest.vcpu.run() == IrqWindowOpen()
    assert guest.vcpu.ready_for_interrupt
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.interrupt(VECTOR)
    assert guest.vcpu.run() == RANG


def test_an_nmi_uses_vector_two(make_guest) -> None:
    guest = make_guest(WAIT, irqchip=True)
    guest.need(Cap.USER_NMI)
    guest.vector(2, HANDLER, at=0x3000)
    guest.vcpu.nmi()
    assert guest.vcpu.run() == RANG


def test_an_ioeventfd_takes_the_write(make_guest) -> None:
    # mov ax, 0x55; out 0x20, ax; mov al, 0x66; out 0x21, al; hlt
    guest = make_guest("B8 55 00 E7 20 B0 66 E6 21 F4")
    guest.need(Cap.IOEVENTFD)
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.ioeventfd(doorbell, 0x20, 2, pio=True)
    assert guest.until_halt() == [IoOut(0x21, 1, 1, b"\x66")]
    assert os.eventfd_read(doorbell) == 1
    guest.vm.ioeventfd(doorbell, 0x20, 2, pio=True, assign=False)
    os.close(doorbell)


def test_an_ioeventfd_with_a_value_takes_only_that_value(make_guest) -> None:
    # mov al, 1; out 0x20, al; inc ax; out 0x20, al; hlt
    guest = make_guest("B0 01 E6 20 40 E6 20 F4")
    guest.need(Cap.IOEVENTFD)
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.ioeventfd(doorbell, 0x20, 1, datamatch=2, pio=True)
    assert guest.until_halt() == [IoOut(0x20, 1, 1, b"\x01")]
    assert os.eventfd_read(doorbell) == 1
    os.close(doorbell)


def test_coalesced_port_writes_wait_for_the_next_exit(make_guest) -> None:
    # mov dx, 0x3f8; mov al, 'a'; out dx, al; inc ax; out dx, al; inc ax; out dx, al; hlt
    guest = make_guest("BA F8 03 B0 61 EE 40 EE 40 EE F4")
    guest.need(Cap.COALESCED_PIO)
    guest.vm.coalesce(0x3F8, 1, pio=True)
    assert guest.until_halt() == []
    assert guest.vm.drain_coalesced() == [CoalescedWrite(0x3F8, 1, b"abc", True)]
    assert guest.vcpu.drain_coalesced() == []


def test_a_full_ring_loses_nothing(make_guest) -> None:
    # mov dx, 0x3f8; mov cx, 400; again: out dx, al; inc ax; loop again; hlt
    guest = make_guest("BA F8 03 B9 90 01 EE 40 E2 FC F4")
    guest.need(Cap.COALESCED_PIO)
    guest.vm.coalesce(0x3F8, 1, pio=True)
    got = bytearray()
    while True:
        exit = guest.vcpu.run()
        got += b"".join(write.data for write in guest.vm.drain_coalesced())
        if not isinstance(exit, IoOut):
            break
        got += exit.data
    assert bytes(got) == bytes(n & 0xFF for n in range(400))


ALL = bytes(n & 0xFF for n in range(400))


def test_a_full_ring_is_emptied_without_an_exit(make_guest) -> None:
    guest = make_guest("BA F8 03 B9 90 01 EE 40 E2 FC F4")
    guest.need(Cap.COALESCED_PIO)
    guest.vm.coalesce(0x3F8, 1, pio=True)
    guest.vcpu.add_overflow_fastpath(0x3F8, SimpleNamespace(on=False), pio=True)
    assert guest.until_halt() == []
    assert guest.vm.drain_coalesced() == [CoalescedWrite(0x3F8, 1, ALL, True)]
    assert guest.vcpu.answered["IoOut"] >= 2
    assert guest.vm.drain_coalesced() == []


def test_a_full_ring_of_writes_to_memory_is_too_and_wide_writes_leave(make_guest) -> None:
    # mov ax, 0xb800; mov es, ax; mov cx, 400; xor ax, ax; again: mov es:[0], al; inc ax; loop again
    # mov cx, 200; again: mov word es:[2], 0x4241; loop again; hlt
    guest = make_guest("B8 00 B8 8E C0 B9 90 01 31 C0 26 A2 00 00 40 E2 F9 B9 C8 00 26 C7 06 02 00 41 42 E2 F7 F4")
    guest.need(Cap.COALESCED_MMIO)
    guest.vm.coalesce(0xB8000, 0x1000)
    for address in (0xB8000, 0xB8002):
        guest.vcpu.add_overflow_fastpath(address, SimpleNamespace(on=False))
    wide = guest.vcpu.run()
    assert wide == MmioWrite(0xB8002, b"AB"), "what is wider than a byte finds the ring full"
    first, queued = guest.vm.drain_coalesced()
    assert first == CoalescedWrite(0xB8000, 1, ALL, False)
    assert (
        len(queued.data) + 2 + 2 * len(guest.until_halt()) + sum(len(run.data) for run in guest.vm.drain_coalesced())
        == 2 * 200
    )


@pytest.mark.parametrize("reason", ["traced", "not drained"])
def test_a_write_to_a_full_ring_leaves_when(make_guest, reason: str) -> None:
    # mov dx, 0x3f8; mov cx, 5000; again: out dx, al; loop again; hlt
    guest = make_guest("BA F8 03 B9 88 13 EE E2 FD F4")
    guest.need(Cap.COALESCED_PIO)
    guest.vm.coalesce(0x3F8, 1, pio=True)
    guest.vcpu.add_overflow_fastpath(0x3F8, SimpleNamespace(on=reason == "traced"), pio=True)
    exit = guest.vcpu.run()
    assert exit == IoOut(0x3F8, 1, 1, b"\0")
    sent = sum(len(run.data) for run in guest.vm.drain_coalesced())
    if reason == "traced":
        assert sent < RING_ENTRIES
        assert not guest.vcpu.answered
    else:
        assert 64 << 10 <= sent * 24 <= 80 << 10
        assert guest.vcpu.answered["IoOut"] > 10


def test_coalesced_mmio_keeps_address_and_size(make_guest) -> None:
    # mov ax, 0xb800; mov es, ax; mov word es:[2], 0x4241; hlt
    guest = make_guest("B8 00 B8 8E C0 26 C7 06 02 00 41 42 F4")
    guest.need(Cap.COALESCED_MMIO)
    guest.vm.coalesce(0xB8000, 0x1000)
    assert guest.until_halt() == []
    assert guest.vm.drain_coalesced() == [CoalescedWrite(0xB8002, 2, b"AB", False)]


def test_memory_to_be_read_only_is_read_without_leaving_and_written_into_the_queue(make_guest) -> None:
    """The console's window: `devices.serial.window`."""
    # mov ax, 0xb800; mov es, ax; mov cx, 3; again: mov al, es:[0]; mov es:[1], al; loop again; mov es:[2], al; hlt
    guest = make_guest("B8 00 B8 8E C0 B9 03 00 26 A0 00 00 26 A2 01 00 E2 F6 26 A2 02 00 F4")
    guest.need(Cap.COALESCED_MMIO, Cap.READONLY_MEM)
    page = HostMemory(0x1000, huge=False)
    page.view[:1] = b"x"
    guest.vm.set_memory(1, 0xB8000, page.size, page.address, readonly=True)
    guest.vm.coalesce(0xB8001, 1)
    assert guest.until_halt() == [MmioWrite(0xB8002, b"x")]
    assert guest.vm.drain_coalesced() == [CoalescedWrite(0xB8001, 1, b"xxx", False)]
    assert page.view[:3] == b"x\0\0"
    guest.vm.set_memory(1, 0, 0, 0)


def test_zeroes_written_to_read_only_memory_can_be_dropped(make_guest) -> None:
    """What `Hardware.ignore_zero_writes` does with a masked console's interrupt register."""
    # mov ax, 0xb800; mov es, ax; mov byte es:[1], 0; mov byte es:[1], 5; mov byte es:[1], 0; hlt
    guest = make_guest("B8 00 B8 8E C0 26 C6 06 01 00 00 26 C6 06 01 00 05 26 C6 06 01 00 00 F4")
    guest.need(Cap.IOEVENTFD, Cap.READONLY_MEM)
    page = HostMemory(0x1000, huge=False)
    guest.vm.set_memory(1, 0xB8000, page.size, page.address, readonly=True)
    unread = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.ioeventfd(unread, 0xB8001, 1, datamatch=0)
    assert guest.vcpu.run() == MmioWrite(0xB8001, b"\5")
    guest.vm.ioeventfd(unread, 0xB8001, 1, datamatch=0, assign=False)
    assert guest.until_halt() == [MmioWrite(0xB8001, b"\0")]
    guest.vm.set_memory(1, 0, 0, 0)
    os.close(unread)


def test_uncoalesced_writes_leave_the_guest_again(make_guest) -> None:
    guest = make_guest("B0 41 E6 10 F4")
    guest.need(Cap.COALESCED_PIO)
    guest.vm.coalesce(0x10, 1, pio=True)
    guest.vm.uncoalesce(0x10, 1, pio=True)
    assert guest.until_halt() == [IoOut(0x10, 1, 1, b"A")]


def test_a_pic_interrupt_arrives_through_its_line(make_guest) -> None:
    # Set up the master PIC at vector 8 with line 1 alone unmasked, then wait.
    # mov al,0x11; out 0x20,al; mov al,8; out 0x21,al; mov al,4; out 0x21,al; mov al,1; out 0x21,al;
    # mov al,0xfd; out 0x21,al; xor ax,ax; out 0x11,al; sti; hlt; jmp $-1
    guest = make_guest(
        "B0 11 E6 20 B0 08 E6 21 B0 04 E6 21 B0 01 E6 21 B0 FD E6 21 31 C0 E6 11 " + WAIT, irqchip=True
    )
    guest.vector(9, HANDLER, at=0x3000)
    assert guest.vcpu.run() == IoOut(0x11, 1, 1, b"\0")
    guest.vm.set_irq_line(1, 1)
    guest.vm.set_irq_line(1, 0)
    assert guest.vcpu.run() == RANG
    assert guest.vm.get_irqchip(IrqchipId.PIC_MASTER).chip.pic.imr == 0xFD
