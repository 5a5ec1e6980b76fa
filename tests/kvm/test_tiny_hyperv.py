"""What the kernel does of Hyper-V: its leaves, exits, SINT routes and eventfds. Skips where it does none of it."""

from __future__ import annotations

import os
from struct import pack

import pytest

from pyvmm.kvm import Cap, Hlt, HypervHcall, HypervSynic, IrqRoute, KvmError, pc_routes

pytestmark = pytest.mark.kvm

SCONTROL = 0x40000080
POST_MESSAGE = 0x5C
INVALID_CONNECTION_ID = 0x12


def enlighten(guest, kvm) -> None:
    """Give the guest Hyper-V instead of KVM leaves, and a SynIC."""
    guest.need(Cap.HYPERV_SYNIC2, Cap.HYPERV_CPUID)
    leaves = [entry for entry in kvm.supported_cpuid() if entry.function >> 16 != 0x4000]
    guest.vcpu.set_cpuid(leaves + guest.vcpu.supported_hv_cpuid())
    guest.vcpu.enable_cap(Cap.HYPERV_SYNIC2)


def test_enabling_the_synic_leaves_the_guest(make_guest, kvm) -> None:
    # mov ecx, SCONTROL; mov eax, 1; xor edx, edx; wrmsr; hlt
    guest = make_guest("66 B9 80 00 00 40 66 B8 01 00 00 00 66 31 D2 0F 30 F4", irqchip=True)
    enlighten(guest, kvm)
    assert guest.vcpu.run() == HypervSynic(SCONTROL, 1, 0, 0)


def test_a_posted_message_leaves_the_guest_and_takes_a_status(make_guest, kvm) -> None:
    # mov ecx, GUEST_OS_ID; mov eax, 1; xor edx, edx; wrmsr;
    # mov ecx, POST_MESSAGE; mov edx, 0x3000; xor r8d, r8d; vmmcall; out 0x10, al; hlt
    guest = make_guest(
        "B9 00 00 00 40 B8 01 00 00 00 31 D2 0F 30 B9 5C 00 00 00 BA 00 30 00 00 45 31 C0 0F 01 D9 E6 10 F4",
        irqchip=True,
    )
    guest.long_mode()
    enlighten(guest, kvm)
    call = guest.vcpu.run()
    assert isinstance(call, HypervHcall)
    assert (call.input, call.params) == (POST_MESSAGE, (0x3000, 0))
    call.reply(INVALID_CONNECTION_ID)
    assert guest.vcpu.run() != Hlt()
    assert guest.vcpu.regs.rax == INVALID_CONNECTION_ID


def test_hyperv_connections_signal_eventfds(make_guest) -> None:
    guest = make_guest("F4", irqchip=True)
    guest.need(Cap.HYPERV_EVENTFD)
    doorbell = os.eventfd(0)
    guest.vm.hyperv_eventfd(0x10001, doorbell)
    with pytest.raises(KvmError, match="the connection id has an eventfd"):
        guest.vm.hyperv_eventfd(0x10001, doorbell)
    guest.vm.hyperv_eventfd(0x10001, doorbell, remove=True)
    os.close(doorbell)


def test_hyperv_leaves_begin_with_the_vendor(make_guest, kvm) -> None:
    guest = make_guest("F4", irqchip=True)
    guest.need(Cap.HYPERV_CPUID)
    leaves = {entry.function: entry for entry in guest.vcpu.supported_hv_cpuid()}
    assert pack("<I", leaves[0x40000001].eax) == b"Hv#1"
    if kvm.check(Cap.SYS_HYPERV_CPUID):
        assert 0x40000003 in {entry.function for entry in kvm.supported_hv_cpuid()}


def test_a_sint_route_is_accepted_where_kvm_has_a_synic(make_guest) -> None:
    guest = make_guest("F4", irqchip=True)
    guest.need(Cap.HYPERV_SYNIC2)
    guest.vcpu.enable_cap(Cap.HYPERV_SYNIC2)
    guest.vm.set_routes([*pc_routes(), IrqRoute.hv_sint(24, 0, 2)])
    doorbell = os.eventfd(0)
    guest.vm.irqfd(doorbell, 24)
    os.close(doorbell)
