"""Each exit a guest can cause, and what it gets back."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import (
    Cap,
    Debug,
    GuestDebugFlag,
    Interrupted,
    IoIn,
    IoOut,
    Kvm,
    KvmError,
    MmioRead,
    MmioWrite,
    MsrExitReason,
    MsrRange,
    Rdmsr,
    Shutdown,
    SyncReg,
    Wrmsr,
)

pytestmark = pytest.mark.kvm

UNKNOWN_MSR = 0x40000ABC


def test_a_port_write_leaves_the_guest(make_guest) -> None:
    # mov al, 0x41; out 0x10, al; hlt
    assert make_guest("B0 41 E6 10 F4").until_halt() == [IoOut(0x10, 1, 1, b"A")]


def test_a_string_of_port_writes_comes_in_one_exit(make_guest) -> None:
    # mov si, 0x2000; mov cx, 5; mov dx, 0x3f8; rep outsb; hlt
    guest = make_guest("BE 00 20 B9 05 00 BA F8 03 F3 6E F4")
    guest.ram[0x2000:0x2005] = b"hello"
    exits = guest.until_halt()
    assert b"".join(exit.data for exit in exits) == b"hello"


def test_a_port_read_gets_the_answer(make_guest) -> None:
    # in ax, 0x20; hlt
    guest = make_guest("E5 20 F4")
    read = guest.vcpu.run()
    assert isinstance(read, IoIn)
    read.reply(b"\x34\x12")
    assert guest.until_halt() == []
    assert (read.port, read.size, guest.vcpu.regs.rax & 0xFFFF) == (0x20, 2, 0x1234)


def no_answer(answer: bytearray, switch: SimpleNamespace) -> None:
    answer[0] = 0


def switch_on(answer: bytearray, switch: SimpleNamespace) -> None:
    switch.on = True


@pytest.mark.parametrize("change", [no_answer, switch_on])
def test_a_polled_port_is_answered_without_an_exit_while_there_is_a_quick_answer(make_guest, change) -> None:
    # mov dx, 0x3fd; in al, dx; test al, 1; jz -5; hlt
    guest = make_guest("BA FD 03 EC A8 01 74 FB F4")
    answer, switch = bytearray(b"\x60"), SimpleNamespace(on=False)
    guest.vcpu.add_poll_fastpath(0x3FD, answer, switch)
    asker = threading.Timer(0.1, change, (answer, switch))
    asker.start()
    read = guest.vcpu.run()
    asker.join()
    assert guest.vcpu.answered["IoIn"] > 1
    assert isinstance(read, IoIn)
    assert read.port == 0x3FD
    read.reply(b"\x61")
    assert guest.until_halt() == []


def test_addresses_without_memory_are_ours(make_guest) -> None:
    # mov ax, 0xb800; mov es, ax; mov byte es:[0], 0x41; mov al, es:[4]; hlt
    guest = make_guest("B8 00 B8 8E C0 26 C6 06 00 00 41 26 A0 04 00 F4")
    assert guest.vcpu.run() == MmioWrite(0xB8000, b"A")
    read = guest.vcpu.run()
    assert isinstance(read, MmioRead)
    read.reply(b"\x5a")
    assert guest.until_halt() == []
    assert (read.gpa, read.size, guest.vcpu.regs.rax & 0xFF) == (0xB8004, 1, 0x5A)


def test_a_triple_fault_is_a_shutdown(make_guest) -> None:
    guest = make_guest("0F 0B")  # ud2, with no room in the vector table for any handler
    guest.long_mode()  # in real mode some KVMs emulate, and call it an emulation failure
    sregs = guest.vcpu.sregs
    sregs.idt.limit = 0
    guest.vcpu.sregs = sregs
    assert guest.vcpu.run() == Shutdown()


def test_unknown_msrs_are_ours_when_asked_for(make_guest) -> None:
    # mov ecx, UNKNOWN_MSR; rdmsr; wrmsr; hlt
    guest = make_guest("66 B9 BC 0A 00 40 0F 32 0F 30 F4")
    guest.need(Cap.X86_USER_SPACE_MSR)
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitReason.UNKNOWN | MsrExitReason.INVAL)
    read = guest.vcpu.run()
    assert isinstance(read, Rdmsr)
    read.reply(0x1122334455667788)
    write = guest.vcpu.run()
    assert isinstance(write, Wrmsr)
    write.ok()
    assert guest.until_halt() == []
    assert (read.index, write.index, write.value) == (UNKNOWN_MSR, UNKNOWN_MSR, 0x1122334455667788)


def test_a_refused_msr_access_faults_in_the_guest(make_guest) -> None:
    guest = make_guest("66 B9 BC 0A 00 40 0F 32 F4")
    guest.need(Cap.X86_USER_SPACE_MSR)
    guest.vector(13, bytes.fromhex("B0 0D E6 10 F4"), at=0x3000)  # #GP: mov al, 13; out 0x10, al; hlt
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitReason.UNKNOWN | MsrExitReason.INVAL)
    read = guest.vcpu.run()
    assert isinstance(read, Rdmsr)
    read.fault()
    assert guest.until_halt() == [IoOut(0x10, 1, 1, b"\x0d")]


def test_a_filtered_msr_leaves_the_guest(make_guest) -> None:
    # mov ecx, 0x174 (SYSENTER_CS); rdmsr; inc cx (SYSENTER_ESP); rdmsr; hlt
    guest = make_guest("66 B9 74 01 00 00 0F 32 41 0F 32 F4")
    guest.need(Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitReason.FILTER)
    guest.vm.set_msr_filter([MsrRange.deny_only([0x174], 0x170, 16)])
    exits = guest.until_halt()
    assert [(exit.index, exit.reason) for exit in exits] == [(0x174, MsrExitReason.FILTER)]


def test_immediate_exit_comes_back_without_entering(make_guest) -> None:
    guest = make_guest("F4")
    guest.vcpu.immediate_exit = True
    assert guest.vcpu.run() == Interrupted()
    guest.vcpu.immediate_exit = False
    assert guest.until_halt() == []


def test_another_thread_stops_a_spinning_guest(make_guest) -> None:
    guest = make_guest("E6 10 EB FE")  # out 0x10, al; jmp $
    assert isinstance(guest.vcpu.run(), IoOut)
    runner = threading.get_ident()

    def stop() -> None:
        guest.vcpu.immediate_exit = True
        signal.pthread_kill(runner, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        stopper = threading.Thread(target=stop)
        stopper.start()
        assert guest.vcpu.run() == Interrupted()
        stopper.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_blocked_outside_can_be_let_in_while_running(make_guest) -> None:
    guest = make_guest("EB FE")  # jmp $
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        guest.vcpu.set_signal_mask([])
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert guest.vcpu.run() == Interrupted()
        assert signal.sigtimedwait([signal.SIGUSR1], 0) is not None
        guest.vcpu.set_signal_mask(None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_single_steps_stop_after_each_instruction(make_guest) -> None:
    guest = make_guest("90 90 F4")
    guest.need(Cap.SET_GUEST_DEBUG)
    guest.vcpu.set_guest_debug(GuestDebugFlag.ENABLE | GuestDebugFlag.SINGLESTEP)
    first, second = guest.vcpu.run(), guest.vcpu.run()
    if not isinstance(first, Debug):
        pytest.skip(f"this KVM does not single-step real mode: {first}")
    assert isinstance(second, Debug)
    assert (first.pc, second.pc) == (0x1001, 0x1002)


def test_shared_registers_need_no_system_call(make_guest) -> None:
    # out 0x10, al; out 0x11, al; hlt
    guest = make_guest("E6 10 E6 11 F4")
    guest.need(Cap.SYNC_REGS)
    sync = guest.vcpu.sync
    sync.enable(SyncReg.REGS)
    guest.vcpu.run()
    sync.regs.rax = 0x77
    sync.mark_dirty()
    assert sync.dirty == SyncReg.REGS
    assert guest.vcpu.run() == IoOut(0x11, 1, 1, b"\x77")
    assert sync.dirty == SyncReg(0)
    assert sync.regs.rax == guest.vcpu.regs.rax == 0x77


def test_long_mode_runs_and_translates(make_guest) -> None:
    # mov rax, 0x123456789abcdef0; out 0x10, al; hlt
    guest = make_guest("48 B8 F0 DE BC 9A 78 56 34 12 E6 10 F4")
    guest.long_mode()
    assert guest.until_halt() == [IoOut(0x10, 1, 1, b"\xf0")]
    assert guest.vcpu.regs.rax == 0x123456789ABCDEF0
    place = guest.vcpu.translate(0x1234)
    assert place is not None
    assert place.gpa == 0x1234
    assert guest.vcpu.translate(1 << 40) is None


def test_closed_handles_say_so(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
    for use in (vcpu.run, vm.get_clock, lambda: vcpu.regs, lambda: vcpu.immediate_exit, vcpu.sync.mark_dirty):
        with pytest.raises(HostError, match="is closed"):
            use()
    vcpu.close()
    vm.close()


def test_closing_gives_every_file_back(kvm: Kvm) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_vcpu(0)
        vm.create_vcpu(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_overlapping_memory_is_refused_with_the_cause(make_guest) -> None:
    guest = make_guest("F4")
    with pytest.raises(KvmError, match=r"slot 1, gpa 0x1000.*overlaps another memory slot"):
        guest.vm.set_memory(1, 0x1000, 0x1000, guest.address)


def test_a_second_process_is_refused_with_the_reason(make_guest) -> None:
    guest = make_guest("F4")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _ = guest.vcpu.regs
        except HostError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert b"belongs to another process" in os.read(reader, 1000)
    os.close(reader)
