"""The user engine: each synthetic MSR read, written and refused, hypercalls by port, interrupts by MSI."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from struct import unpack

import pytest

from pyvmm.errors import HostError
from pyvmm.hyperv.enlightenments import chosen, parse_words
from pyvmm.hyperv.hypercall import HYPERCALL_PORT, WIDTH_32, WIDTH_64, call_by_registers, page_code
from pyvmm.hyperv.tlfs import FIRST_MSR, MSR_RANGE, HypercallStatus, Msr
from pyvmm.hyperv.user import UserEngine
from pyvmm.kvm import IoOut, Rdmsr, Wrmsr
from pyvmm.kvm.abi import RUN_EXIT
from pyvmm.kvm.structs import Regs
from pyvmm.memory import GuestMemory
from tests.support.fake_kvm import FakeLoop, FakeVcpu, FakeVm

GP = "#GP"


class Guest:
    """Reads and writes MSRs as vCPU 0 (or `vp`) does."""

    def __init__(self, memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu, choice: str = "") -> None:
        self.memory, self.loop, self.vm, self.vcpu = memory, loop, vm, vcpu
        names = chosen(parse_words(choice) if choice else (), "user")
        self.engine = UserEngine(2, memory, loop, enlightenments=names)  # type: ignore[arg-type]
        self.engine.setup_vm(vm)  # type: ignore[arg-type]
        self.page = mmap.mmap(-1, 4096)

    def rdmsr(self, msr: int, vp: int = 0) -> int | str:
        self.page[RUN_EXIT] = 0
        assert self.engine.handle(self.vcpu, vp, Rdmsr(msr, 0, self.page))  # type: ignore[arg-type]
        return GP if self.page[RUN_EXIT] else unpack("<Q", self.page[RUN_EXIT + 16 : RUN_EXIT + 24])[0]

    def wrmsr(self, msr: int, value: int, vp: int = 0) -> str:
        self.page[RUN_EXIT] = 0
        assert self.engine.handle(self.vcpu, vp, Wrmsr(msr, value, 0, self.page))  # type: ignore[arg-type]
        self.loop.run()
        return GP if self.page[RUN_EXIT] else ""

    def call(self, control: int, first: int = 0) -> int:
        self.vcpu.regs.rcx, self.vcpu.regs.rdx, self.vcpu.regs.rip = control, first, 0x1234
        self.vcpu.regs.rax = 0xDEAD
        assert self.engine.handle(self.vcpu, 0, IoOut(HYPERCALL_PORT, 1, 1, b"\0"))  # type: ignore[arg-type]
        assert self.vcpu.regs.rip == 0x1234
        return self.vcpu.regs.rax


MakeEnlightened = Callable[[str], Guest]


@pytest.fixture
def enlightened(memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu) -> Iterator[MakeEnlightened]:
    """Makes a guest with a choice of enlightenments; its engine is reset at the end."""
    made: list[Guest] = []

    def make(choice: str) -> Guest:
        made.append(Guest(memory, loop, vm, vcpu, choice))
        return made[-1]

    yield make
    for guest in made:
        guest.engine.close()


@pytest.fixture
def guest(memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu) -> Guest:
    return Guest(memory, loop, vm, vcpu)


def test_the_msr_filter_covers_the_whole_range(guest: Guest) -> None:
    (denied,) = guest.vm.filter
    assert (denied.base, denied.count) == (FIRST_MSR, MSR_RANGE)
    assert not any(denied.bitmap)


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (Msr.GUEST_OS_ID, 0x8100000000000000),
        (Msr.REFERENCE_TSC, 0x3001),
        (Msr.VP_ASSIST_PAGE, 0x4001),
        (Msr.SCONTROL, 0),
        (Msr.SIEFP, 0x5001),
        (Msr.SIMP, 0x6001),
        (Msr.SINT0, 0xF3),
        (Msr.SINT15, 0x100FF),
        (Msr.CRASH_P0, 7),
        (Msr.CRASH_P4, 1 << 63),
    ],
)
def test_registers_read_back(guest: Guest, msr: Msr, value: int) -> None:
    assert guest.wrmsr(msr, value) == ""
    assert guest.rdmsr(msr) == value


@pytest.mark.parametrize(
    ("msr", "value"),
    [(Msr.VP_INDEX, 1), (Msr.SVERSION, 1), (Msr.EOM, 0), (Msr.RESET, 0), (Msr.TSC_FREQUENCY, 2_000_000_000),
     (Msr.APIC_FREQUENCY, 1_000_000_000), (Msr.SCONTROL, 1), (Msr.SINT0, 0x10000), (Msr.HYPERCALL, 0)],
)  # fmt: skip
def test_power_on_values(guest: Guest, msr: Msr, value: int) -> None:
    assert guest.rdmsr(msr, vp=1) == value


@pytest.mark.parametrize(
    "msr", [Msr.VP_INDEX, Msr.TIME_REF_COUNT, Msr.TSC_FREQUENCY, Msr.APIC_FREQUENCY, Msr.SVERSION]
)
def test_read_only_registers_fault_when_written(guest: Guest, msr: Msr) -> None:
    assert guest.wrmsr(msr, 1) == GP


@pytest.mark.parametrize("msr", [0x40000010, 0x400000B0, 0x40000118, 0x40000FFF, 0x40001080])
def test_what_is_not_there_faults(guest: Guest, msr: int) -> None:
    assert guest.rdmsr(msr) == GP
    assert guest.wrmsr(msr, 0) == GP


def test_the_tsc_invariance_control_is_there_where_it_is_offered(
    memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu
) -> None:
    guest = Guest(memory, loop, vm, vcpu)
    guest.engine = UserEngine(1, memory, loop, invariant_tsc=True)  # type: ignore[arg-type]
    assert guest.wrmsr(Msr.TSC_INVARIANT_CONTROL, 1) == ""
    assert guest.rdmsr(Msr.TSC_INVARIANT_CONTROL) == 1


GATED = [
    ("time", Msr.TIME_REF_COUNT),
    ("time", Msr.REFERENCE_TSC),
    ("frequencies", Msr.TSC_FREQUENCY),
    ("frequencies", Msr.APIC_FREQUENCY),
    ("crash", Msr.CRASH_P0),
    ("crash", Msr.CRASH_CTL),
    ("reset", Msr.RESET),
    ("runtime", Msr.VP_RUNTIME),
    ("reenlightenment", Msr.REENLIGHTENMENT_CONTROL),
    ("reenlightenment", Msr.TSC_EMULATION_STATUS),
    ("stimer", Msr.STIMER0_CONFIG),
    ("stimer", Msr.STIMER3_COUNT),
    ("vapic", Msr.TPR),
    ("vapic", Msr.ICR),
]


@pytest.mark.parametrize(("name", "msr"), GATED)
def test_an_enlightenment_s_registers_exist_if_it_is_chosen(
    enlightened: MakeEnlightened, name: str, msr: Msr
) -> None:
    with_it, without = enlightened(name), enlightened(f"-{name}")
    assert with_it.rdmsr(msr) != GP
    assert without.rdmsr(msr) == GP
    assert without.wrmsr(msr, 0) == GP


def test_a_timer_interrupts_directly_and_by_message(enlightened: MakeEnlightened) -> None:
    guest = enlightened("stimer,stimer-direct")
    guest.wrmsr(Msr.STIMER0_CONFIG, 1 << 12 | 0xED << 4 | 8, vp=1)
    guest.wrmsr(Msr.STIMER0_COUNT, 1, vp=1)  # long past
    assert guest.vm.msis == [(0xFEE01000, 0xED)]
    guest.wrmsr(Msr.SIMP, 0x6001)
    guest.wrmsr(Msr.SINT0 + 3, 0xF1)
    guest.wrmsr(Msr.STIMER0_CONFIG + 2, 3 << 16 | 8)
    guest.wrmsr(Msr.STIMER0_COUNT + 2, 1)
    kind, size, _, index, expiration = unpack("<IBxxxQIxxxxQ", guest.memory.read(0x6300, 32))
    assert (kind, size, index, expiration) == (0x80000010, 24, 1, 1)
    assert guest.vm.msis[1:] == [(0xFEE00000, 0xF1)]


def test_a_timer_message_waits_for_eom_and_for_the_messages_before_it(enlightened: MakeEnlightened) -> None:
    guest = enlightened("stimer")
    guest.wrmsr(Msr.SIMP, 0x6001)
    guest.wrmsr(Msr.SINT0 + 2, 0xF3)
    guest.wrmsr(Msr.STIMER0_CONFIG, 2 << 16 | 8)
    for payload in (b"a", b"b"):
        guest.engine.post_message(0, 2, 1, payload, lambda status: None)
    guest.wrmsr(Msr.STIMER0_COUNT, 1)
    kinds = []
    for _ in range(4):
        kinds.append(unpack("<I", guest.memory.read(0x6200, 4))[0])
        assert guest.memory.read(0x6205, 1) == (b"\1" if len(kinds) < 3 else b"\0"), "EOM is asked for"
        guest.memory.write(0x6200, bytes(6))
        guest.wrmsr(Msr.EOM, 0)
    assert kinds == [1, 1, 0x80000010, 0]


@pytest.mark.parametrize("missing", [(Msr.SINT0 + 2, 0xF3), (Msr.SCONTROL, 1), (Msr.SIMP, 0x6001)])
def test_a_timer_message_comes_with_the_last_register_it_needs(
    enlightened: MakeEnlightened, missing: tuple[int, int]
) -> None:
    guest = enlightened("stimer")
    guest.wrmsr(Msr.SCONTROL, 0)
    for each in ((Msr.SINT0 + 2, 0xF3), (Msr.SCONTROL, 1), (Msr.SIMP, 0x6001)):
        if each != missing:
            guest.wrmsr(*each)
    guest.wrmsr(Msr.STIMER0_CONFIG, 2 << 16 | 8)
    guest.wrmsr(Msr.STIMER0_COUNT, 1)
    assert not guest.vm.msis
    guest.wrmsr(*missing)
    assert guest.vm.msis == [(0xFEE00000, 0xF3)]


def test_timers_count_what_the_guest_computes_from_its_page(enlightened: MakeEnlightened) -> None:
    guest = enlightened("stimer,stimer-direct")
    guest.vcpu.tsc = 10**12
    guest.wrmsr(Msr.REFERENCE_TSC, 0x7001)
    guest.vcpu.tsc += 1000 * guest.vcpu.tsc_khz * 1000  # 1000 s by the TSC, and none by the host's clock
    guest.engine.clock._followed = 0
    guest.wrmsr(Msr.STIMER0_CONFIG, 1 << 12 | 0xED << 4 | 8)
    guest.wrmsr(Msr.STIMER0_COUNT, 999 * 10_000_000)
    assert guest.vm.msis == [(0xFEE00000, 0xED)]


def test_an_ipi_call_interrupts_each_vp_of_its_mask(enlightened: MakeEnlightened) -> None:
    guest = enlightened("ipi")
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    guest.vcpu.regs.r8 = 0b11
    assert guest.call(0x0B | 1 << 16, 0xFD) == HypercallStatus.SUCCESS
    assert guest.vm.msis == [(0xFEE00000, 0xFD), (0xFEE01000, 0xFD)]


def test_apic_registers_are_those_of_kvm_s_x2apic(enlightened: MakeEnlightened) -> None:
    guest = enlightened("vapic")
    guest.wrmsr(Msr.EOI, 0)
    guest.wrmsr(Msr.TPR, 0x20)
    guest.wrmsr(Msr.ICR, 0x03 << 56 | 0xFD)
    assert guest.vcpu.msrs == {0x80B: 0, 0x808: 0x20, 0x830: 0x03 << 32 | 0xFD}
    assert guest.rdmsr(Msr.TPR) == 0x20
    assert guest.rdmsr(Msr.ICR) == 0x03 << 56 | 0xFD
    assert guest.rdmsr(Msr.EOI) == GP


def test_apic_registers_fault_while_the_apic_is_no_x2apic(enlightened: MakeEnlightened) -> None:
    guest = enlightened("vapic")

    def refuse(values: object) -> dict[int, int]:
        raise HostError("KVM_SET_MSRS: MSR 0x80b")

    guest.vcpu.set_msrs = guest.vcpu.get_msrs = refuse  # type: ignore[method-assign,assignment]
    assert guest.wrmsr(Msr.EOI, 0) == GP
    assert guest.rdmsr(Msr.ICR) == GP


def test_reenlightenment_registers_keep_what_is_written_until_reset(enlightened: MakeEnlightened) -> None:
    guest = enlightened("reenlightenment")
    guest.wrmsr(Msr.REENLIGHTENMENT_CONTROL, 0x100EE)
    guest.wrmsr(Msr.TSC_EMULATION_CONTROL, 1)
    assert guest.rdmsr(Msr.REENLIGHTENMENT_CONTROL, vp=1) == 0x100EE
    assert guest.wrmsr(Msr.TSC_EMULATION_STATUS, 1) == GP
    assert guest.wrmsr(Msr.TSC_EMULATION_STATUS, 0) == ""
    guest.engine.reset()
    assert guest.rdmsr(Msr.TSC_EMULATION_CONTROL) == 0


def test_the_run_time_is_that_of_the_thread(enlightened: MakeEnlightened) -> None:
    guest = enlightened("runtime")
    before = guest.rdmsr(Msr.VP_RUNTIME)
    while guest.rdmsr(Msr.VP_RUNTIME) == before:
        pass
    assert guest.rdmsr(Msr.VP_RUNTIME) > before  # type: ignore[operator]


def test_alarms_outlive_a_reset_and_end_with_the_engine(enlightened: MakeEnlightened) -> None:
    """A confined process can make no new ones."""
    guest = enlightened("stimer")
    guest.engine.reset()
    assert len(guest.loop.readers) == 2
    guest.engine.close()
    assert not guest.loop.readers


@pytest.mark.parametrize("msr", [Msr.HYPERCALL, Msr.REFERENCE_TSC, Msr.SIMP, Msr.SIEFP])
def test_a_page_outside_ram_faults_and_changes_nothing(guest: Guest, msr: Msr) -> None:
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    assert guest.wrmsr(msr, 1 << 40 | 1) == GP
    assert guest.rdmsr(msr) == 0


def test_vps_have_synics_of_their_own(guest: Guest) -> None:
    guest.wrmsr(Msr.SIMP, 0x6001, vp=1)
    assert guest.rdmsr(Msr.SIMP, vp=0) == 0


def test_the_hypercall_page_comes_once_the_guest_has_said_who_it_is(guest: Guest) -> None:
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    assert guest.rdmsr(Msr.HYPERCALL) == 0x3000
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    assert guest.memory.read(0x3000, 4096) == page_code()
    guest.wrmsr(Msr.GUEST_OS_ID, 0)
    assert guest.rdmsr(Msr.HYPERCALL) == 0


def test_a_locked_hypercall_page_stays_until_reset(guest: Guest) -> None:
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3003)
    guest.wrmsr(Msr.HYPERCALL, 0x5001)
    assert guest.rdmsr(Msr.HYPERCALL) == 0x3003
    guest.engine.reset()
    assert guest.rdmsr(Msr.HYPERCALL) == 0


def test_a_call_through_the_page_answers_in_rax(guest: Guest) -> None:
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    assert guest.call(0x5D | 1 << 16, 77) == HypercallStatus.INVALID_CONNECTION_ID
    signals: list[int] = []
    guest.engine.connect_signal(77, lambda: signals.append(1))
    assert guest.call(0x5D | 1 << 16, 77) == HypercallStatus.SUCCESS
    assert guest.call(0x5D | 1 << 16, 77) == HypercallStatus.SUCCESS
    guest.loop.run()
    assert signals == [1]  # two that came before the loop turned are one


def test_a_32_bit_guest_has_a_page_and_registers_of_its_own(guest: Guest) -> None:
    guest.vcpu.sregs.cs.l = 0  # a compatibility segment counts as 32-bit code
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    assert guest.memory.read(0x3000, 8) == bytes.fromhex("f3 0f 1e fb e7 ec c3 cc"), "endbr32; out 0xec, eax; ret"
    regs, garbage = guest.vcpu.regs, 0xABCD_0000_0000
    out = IoOut(HYPERCALL_PORT, 4, 1, bytes(4))

    def call(code: int, connection: int) -> tuple[int, int]:
        regs.rax, regs.rdx = garbage | code | 1 << 16, garbage
        regs.rcx, regs.rbx = garbage | connection, garbage  # EBX:ECX is the event; flag number 0
        assert guest.engine.handle(guest.vcpu, 0, out)  # type: ignore[arg-type]
        return regs.rdx, regs.rax

    assert call(0x5D, 77) == (0, HypercallStatus.INVALID_CONNECTION_ID)
    signals: list[int] = []
    guest.engine.connect_signal(77, lambda: signals.append(1))
    assert call(0x5D, 77) == (0, HypercallStatus.SUCCESS)
    guest.loop.run()
    assert signals == [1]
    assert call(0x5E, 77) == (0, HypercallStatus.INVALID_HYPERCALL_CODE)


@pytest.mark.parametrize("long_mode", [True, False])
def test_the_repetitions_done_come_back_in_the_high_half(long_mode: bool) -> None:
    regs = Regs(rcx=1, rdx=2, r8=3) if long_mode else Regs(rax=1, rcx=2, rsi=3)
    seen: list[tuple[int, int, int]] = []

    def call(*words: int) -> int:
        seen.append(words)
        return 5 << 32 | 7

    call_by_registers(call, regs, WIDTH_64 if long_mode else WIDTH_32)
    assert seen == [(1, 2, 3)]
    assert (regs.rax, regs.rdx) == ((5 << 32 | 7, 2) if long_mode else (7, 5))


def test_a_signal_disconnected_while_under_way_is_not_delivered(guest: Guest) -> None:
    guest.wrmsr(Msr.GUEST_OS_ID, 1)
    guest.wrmsr(Msr.HYPERCALL, 0x3001)
    signals: list[int] = []
    guest.engine.connect_signal(77, lambda: signals.append(1))
    guest.call(0x5D | 1 << 16, 77)
    guest.engine.disconnect_signal(77)
    guest.engine.connect_signal(77, lambda: signals.append(2))
    guest.loop.run()
    assert not signals


def test_without_the_page_the_port_does_nothing(guest: Guest) -> None:
    assert guest.call(0x5D | 1 << 16, 77) == 0xDEAD


def test_a_message_interrupts_with_the_guest_s_vector_on_the_right_cpu(guest: Guest) -> None:
    guest.wrmsr(Msr.SIMP, 0x6001, vp=1)
    guest.wrmsr(Msr.SINT0 + 2, 0xF3, vp=1)
    done: list[int] = []
    guest.engine.post_message(1, 2, 1, b"x", done.append)
    assert done == [0]
    assert guest.vm.msis == [(0xFEE01000, 0xF3)]


def test_a_sint_with_auto_eoi_kicks_the_vcpu_instead(guest: Guest) -> None:
    kicks: list[int] = []
    guest.engine.kick = kicks.append
    guest.wrmsr(Msr.SINT0 + 8, 0xB0 | 1 << 17, vp=1)
    guest.engine.interrupt(1, 8)
    guest.wrmsr(Msr.SINT0 + 8, 0xB0 | 1 << 16 | 1 << 17, vp=1)
    guest.engine.interrupt(1, 8)  # masked
    assert (kicks, guest.vm.msis) == ([1], [])


def test_the_counter_is_what_the_tsc_page_gives_for_the_guest_s_tsc(guest: Guest) -> None:
    guest.wrmsr(Msr.REFERENCE_TSC, 0x7001)
    before = guest.rdmsr(Msr.TIME_REF_COUNT)
    guest.vcpu.tsc += 2_000_000 * 1000  # a second
    after = guest.rdmsr(Msr.TIME_REF_COUNT)
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert abs(after - before - 10_000_000) <= 1


@pytest.mark.parametrize("msr_value", [(Msr.SINT0 + 2, 0xF3), (Msr.SCONTROL, 1), (Msr.SIMP, 0x6001)])
def test_a_waiting_message_comes_with_the_last_register_it_needs(guest: Guest, msr_value: tuple[int, int]) -> None:
    guest.wrmsr(Msr.SCONTROL, 0)
    for msr, value in ((Msr.SINT0 + 2, 0xF3), (Msr.SCONTROL, 1), (Msr.SIMP, 0x6001)):
        if (msr, value) != msr_value:
            guest.wrmsr(msr, value)
    done: list[int] = []
    guest.engine.post_message(0, 2, 1, b"x", done.append)
    assert done[-1] != 0
    guest.wrmsr(*msr_value)
    assert done[-1] == 0


def test_eom_brings_the_next_message(guest: Guest) -> None:
    guest.wrmsr(Msr.SIMP, 0x6001)
    guest.wrmsr(Msr.SINT0 + 2, 0xF3)
    for payload in (b"a", b"b"):
        guest.engine.post_message(0, 2, 1, payload, lambda status: None)
    guest.memory.write(0x6200, bytes(4))
    guest.wrmsr(Msr.EOM, 0)
    assert guest.memory.read(0x6210, 1) == b"b"


def test_a_vector_below_16_is_refused_unless_masked(guest: Guest) -> None:
    assert guest.wrmsr(Msr.SINT0, 15) == GP
    assert guest.wrmsr(Msr.SINT0, 0x1000F) == ""


def test_the_reference_page_yields_the_counter(guest: Guest) -> None:
    guest.vcpu.tsc = 10**12
    assert guest.wrmsr(Msr.REFERENCE_TSC, 0x7001) == ""
    sequence, _, scale, offset = unpack("<IIQQ", guest.memory.read(0x7000, 24))
    assert sequence
    time = ((10**12 * scale >> 64) + offset) % (1 << 64)
    counter = guest.rdmsr(Msr.TIME_REF_COUNT)
    assert isinstance(counter, int)
    assert 0 <= counter - time < 10_000_000


def test_the_reset_register_resets(guest: Guest) -> None:
    resets: list[int] = []
    guest.engine.on_reset = lambda: resets.append(1)
    guest.wrmsr(Msr.RESET, 0)
    assert not resets
    guest.wrmsr(Msr.RESET, 1)
    assert resets == [1]


def test_a_crash_is_reported_on_the_loop(guest: Guest) -> None:
    reports: list[str] = []
    guest.engine.on_crash = lambda report: reports.append(report.text)
    guest.memory.write(0x8000, b"Kernel panic")
    for n, value in enumerate((0, 0, 0, 0x8000, 12)):
        guest.wrmsr(Msr.CRASH_P0 + n, value)
    guest.wrmsr(Msr.CRASH_CTL, 3 << 62)
    assert reports == ["Kernel panic"]


def test_other_exits_are_not_the_engine_s(guest: Guest) -> None:
    assert not guest.engine.handle(guest.vcpu, 0, IoOut(0x80, 1, 1, b"\0"))  # type: ignore[arg-type]
    assert not guest.engine.handle(guest.vcpu, 0, Rdmsr(0x1B, 0, guest.page))  # type: ignore[arg-type]


FLOODED = {
    "SCONTROL": (Msr.SCONTROL, 1),
    "SIMP": (Msr.SIMP, 0x3001),
    "EOM": (Msr.EOM, 0),
    "SINT2": (Msr.SINT0 + 2, 0xF3),
    "CRASH_CTL": (Msr.CRASH_CTL, 1 << 63),
}


@pytest.mark.parametrize("name", FLOODED)
def test_a_register_written_over_and_over_queues_the_loop_s_work_once(guest: Guest, name: str) -> None:
    msr, value = FLOODED[name]
    for _ in range(500):
        assert guest.engine.handle(guest.vcpu, 0, Wrmsr(msr, value, 0, guest.page))  # type: ignore[arg-type]
    assert len(guest.loop.posted) == 1


def test_of_several_crashes_the_last_is_reported(guest: Guest) -> None:
    told: list[int] = []
    guest.engine.on_crash = lambda report: told.append(report.parameters[0])
    for n in range(5):
        for msr, value in ((Msr.CRASH_P0, n), (Msr.CRASH_CTL, 1 << 63)):
            guest.engine.handle(guest.vcpu, 0, Wrmsr(msr, value, 0, guest.page))  # type: ignore[arg-type]
    guest.loop.run()
    assert told == [4]


def test_an_interrupt_that_no_apic_takes_is_lost_and_the_message_is_not(guest: Guest) -> None:
    """A guest that switches its APICs off: KVM_SIGNAL_MSI says EPERM."""

    def refuse(address: int, data: int) -> bool:
        raise HostError("KVM_SIGNAL_MSI: Operation not permitted")

    guest.vm.signal_msi = refuse  # type: ignore[method-assign]
    guest.wrmsr(Msr.SCONTROL, 1)
    guest.wrmsr(Msr.SIMP, 0x6001)
    guest.wrmsr(Msr.SIEFP, 0x7001)
    guest.wrmsr(Msr.SINT0 + 2, 0xF3)
    done: list[int] = []
    guest.engine.post_message(0, 2, 1, b"message", done.append)
    assert done == [0]
    assert guest.memory.read(0x6000 + 2 * 256, 1) == b"\1"
    assert guest.engine.signal_event(0, 2, 5)
