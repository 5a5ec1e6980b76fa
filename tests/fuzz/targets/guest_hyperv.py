"""MSRs, hypercalls and SynIC pages of both engines, for a machine with RAM at both ends of a hole."""

from __future__ import annotations

import mmap
from struct import pack

from pyvmm.devices.testdev.hyperv import HypervTestdev
from pyvmm.errors import HostError
from pyvmm.hyperv.crash import CrashRegisters
from pyvmm.hyperv.enlightenments import chosen
from pyvmm.hyperv.hypercall import HYPERCALL_PORT, WIDTH_32, WIDTH_64
from pyvmm.hyperv.kernel import KernelEngine
from pyvmm.hyperv.tlfs import FIRST_MSR, MSR_RANGE, HypercallCode, Msr
from pyvmm.hyperv.user import UserEngine
from pyvmm.kvm import HypervHcall, HypervSynic, IoOut, Rdmsr, Wrmsr
from pyvmm.memory import GuestMemory, HostMemory, Region
from tests.fuzz.feed import Feed
from tests.support.fake_kvm import FakeLoop, FakeVcpu, FakeVm

VPS = 2
LOW, HIGH, HIGH_SIZE = 0x10000, 1 << 32, 0x8000
CODES = (*HypercallCode, 0x8000, 0x8002, 0, 0xFFFF)
CONNECTIONS = (1, 2, 4, 5, 16, 17, 0xFFFFFF, 0x1000001)
_low, _high = HostMemory(LOW, huge=False), HostMemory(HIGH_SIZE, huge=False)  # kept: an mmap costs more than a run
_page = mmap.mmap(-1, 8192)


def _memory() -> GuestMemory:
    """Two regions with a hole between them, and nothing above."""
    return GuestMemory([Region(0, LOW, _low), Region(HIGH, HIGH_SIZE, _high)])


def _gpa(feed: Feed) -> int:
    """An address: in RAM, at its ends, in the hole, or anything."""
    kind = feed.below(4)
    base = (0, LOW, HIGH, HIGH + HIGH_SIZE)[feed.below(4)]
    if kind < 2:
        return feed.below(LOW >> 3) << 3
    return max(0, base + feed.below(64) * 8 - 256) if kind == 2 else feed.word()


def _page_value(feed: Feed) -> int:
    """What a guest writes into a register that names a page."""
    return _gpa(feed) & ~0xFFF | feed.below(4) if feed.flag() else feed.word()


def _call(feed: Feed, memory: GuestMemory) -> tuple[int, int, int]:
    """A hypercall with its input in memory, if there is any: control word, RDX, R8. One in four makes no sense."""
    gpa, out = _gpa(feed), _gpa(feed)
    code, control, block = feed.choice(CODES), 0, b""
    match code:
        case HypercallCode.POST_MESSAGE:
            payload = feed.take(feed.choice((0, 8, 20, 40, 240)))
            size = feed.choice((len(payload), len(payload), 241, 1 << 31))
            block = pack("<IIII", feed.choice(CONNECTIONS), 0, feed.choice((1, 1, 0, 2)), size) + payload
        case HypercallCode.SIGNAL_EVENT:
            block = pack("<IHH", feed.choice(CONNECTIONS), feed.choice((0, 0, 1)), 0)
            if feed.flag():  # fast: the input is in the register
                control, gpa = 1 << 16, int.from_bytes(block, "little")
        case HypercallCode.SEND_IPI:
            vector, reserved, mask = feed.choice((0xFD, 0x10, 0xF, 0x100, 2)), feed.choice((0, 0, 1)), feed.word()
            block = pack("<IIQ", vector, reserved, mask)
            if feed.flag():
                control, gpa, out = 1 << 16, vector | reserved << 32, mask
        case HypercallCode.SEND_IPI_EX:
            banks = [feed.word() for _ in range(feed.below(4))]
            valid = feed.choice(((1 << len(banks)) - 1, 1 << 63, feed.word()))
            block = pack(f"<IIQQ{len(banks)}Q", 0xFD, 0, feed.choice((0, 0, 1, 2)), valid, *banks)
            control = feed.choice((len(banks), len(banks), feed.below(1024))) << 17
        case HypercallCode.EXT_MEMORY_HEAT_HINT:
            entries = [_entry(feed) for _ in range(feed.below(20))]
            block = pack("<Q", feed.choice((2, 2, 2, 0, 1 << 62))) + pack(f"<{len(entries)}Q", *entries)
            control = len(entries) << 32 | feed.choice((0, 0, 1, 4095)) << 48
    if memory.contains(gpa, len(block)):
        memory.write(gpa, block)
    if feed.below(4) == 0:
        control |= 1 << feed.below(64)
    return control | code, gpa, out


def _entry(feed: Feed) -> int:
    """Pages that a heat hint names."""
    match feed.below(4):
        case 0:
            return feed.below(LOW >> 12) << 12 | feed.below(8)
        case 1:
            return HIGH | feed.below(8) << 12 | feed.below(8)
        case 2:
            return feed.choice((0, 1 << 21, HIGH, 1 << 63)) | 1 << 11 | feed.below(2) << 12 | feed.below(2048)
        case _:
            return feed.number(8)


def _timer_value(feed: Feed) -> int:
    """A timer's COUNT or CONFIG: flags, a vector or a SINT, times near and far."""
    match feed.below(4):
        case 0:
            return feed.below(16) | 1 << 12 | feed.below(256) << 4
        case 1:
            return feed.below(16) | feed.below(16) << 16
        case 2:
            return feed.choice((0, 1, 7, 10_000, 1 << 63, (1 << 64) - 1))
        case _:
            return feed.word()


def _discard(gpa: int, size: int) -> int:
    """RAM only: what else the guest names must not get here."""
    assert (gpa >= 0 and gpa + size <= LOW) or (gpa >= HIGH and gpa + size <= HIGH + HIGH_SIZE)
    if gpa == HIGH:
        raise HostError("not now")
    return size


def user(data: bytes) -> None:
    """The user engine: every MSR access, calls by port, messages and events of the host in between."""
    feed = Feed(data)
    memory, loop, vcpu = _memory(), FakeLoop(), FakeVcpu()
    names = chosen(("+all",) if feed.flag() else (), "user")
    engine = UserEngine(VPS, memory, loop, invariant_tsc=feed.flag(), enlightenments=names)  # type: ignore[arg-type]
    if feed.flag():
        engine.report_free_pages(_discard)
    engine.setup_vm(FakeVm())  # type: ignore[arg-type]
    if feed.flag():
        engine.listen(lambda connection, kind, payload: 0)
    else:
        engine.hypercalls._listening.set()  # as after LISTENER_WAIT
    engine.connect_signal(16, lambda: None)
    vcpu.tsc = feed.word()
    device = HypervTestdev(engine, loop)
    while feed:
        vp = feed.below(VPS)
        msr = feed.choice(tuple(Msr)) if feed.below(4) else FIRST_MSR + feed.below(MSR_RANGE)
        match feed.below(10):
            case 9:
                _test_device(feed, device)
            case 0:
                assert engine.handle(vcpu, vp, Rdmsr(msr, 0, _page))  # type: ignore[arg-type]
            case 1:
                assert engine.handle(vcpu, vp, Wrmsr(msr, feed.word(), 0, _page))  # type: ignore[arg-type]
            case 2:
                page = feed.choice((Msr.SIMP, Msr.SIEFP, Msr.HYPERCALL, Msr.REFERENCE_TSC, Msr.VP_ASSIST_PAGE))
                assert engine.handle(vcpu, vp, Wrmsr(page, _page_value(feed), 0, _page))  # type: ignore[arg-type]
            case 3:
                sint = Msr.SINT0 + feed.below(16)
                assert engine.handle(vcpu, vp, Wrmsr(sint, feed.number(4), 0, _page))  # type: ignore[arg-type]
            case 4:
                vcpu.regs.rcx, vcpu.regs.rdx, vcpu.regs.r8 = words = _call(feed, memory)
                width = WIDTH_32 if words[2] & 8 else WIDTH_64
                if width == WIDTH_32:
                    vcpu.regs.rdx, vcpu.regs.rax = words[0] >> 32, words[0]
                    vcpu.regs.rbx, vcpu.regs.rcx = words[1] >> 32, words[1]
                    vcpu.regs.rdi, vcpu.regs.rsi = words[2] >> 32, words[2]
                vcpu.sregs.cs.l = width == WIDTH_64
                assert engine.handle(vcpu, vp, IoOut(HYPERCALL_PORT, width, 1, bytes(width)))  # type: ignore[arg-type]
            case 5:
                engine.post_message(feed.below(VPS + 1), 2, 1, feed.take(feed.below(241)), lambda status: None)
            case 6:
                engine.signal_event(feed.below(VPS + 1), 2, feed.below(2048))
            case 7:
                timer = Msr.STIMER0_CONFIG + feed.below(8)
                value = _timer_value(feed)
                assert engine.handle(vcpu, vp, Wrmsr(timer, value, 0, _page))  # type: ignore[arg-type]
                engine.timers_due(vp)
            case _:
                loop.run()
    loop.run()
    device.reset()
    engine.reset()
    engine.close()


def _test_device(feed: Feed, device: HypervTestdev) -> None:
    """A write to hyperv-testdev's port: an operation with a SINT, VP and connection that may exist, or anything."""
    word = feed.choice(CONNECTIONS) << 24 | feed.below(9) << 16 | feed.below(VPS + 1) << 8 | feed.below(18)
    device.write(0, 4, (word if feed.below(8) else feed.number(4)) & 0xFFFFFFFF)
    if feed.below(32) == 0:
        device.reset()


def kernel(data: bytes) -> None:
    """The kernel engine: the exits that KVM passes on, with any values in them."""
    feed = Feed(data)
    memory, loop, vcpu = _memory(), FakeLoop(), FakeVcpu()
    engine = KernelEngine(VPS, memory, loop, base_routes=(), extended_calls_exit=feed.flag())  # type: ignore[arg-type]
    if feed.flag():
        engine.report_free_pages(_discard)
    engine.listen(lambda connection, kind, payload: 0)
    engine.connect_signal(16, lambda: None)
    vm = FakeVm()
    engine.setup_vm(vm)  # type: ignore[arg-type]
    for vp in range(VPS):
        engine.setup_vcpu(vcpu, vp)  # type: ignore[arg-type]
    if feed.flag():
        vm.most_routes = VPS + feed.below(8)
    device = HypervTestdev(engine, loop)
    while feed:
        vp = feed.below(VPS)
        match feed.below(7):
            case 6:
                _test_device(feed, device)
            case 0:
                control, first, second = _call(feed, memory)
                call = HypervHcall(control, (first, second), _page)
                assert engine.handle(vcpu, vp, call)  # type: ignore[arg-type]
            case 1 | 2:
                msr = feed.choice((Msr.SCONTROL, Msr.SIMP, Msr.SIEFP))
                exit = HypervSynic(msr, feed.word(), _page_value(feed), _page_value(feed))
                assert engine.handle(vcpu, vp, exit)  # type: ignore[arg-type]
            case 3:
                msr = Msr.CRASH_P0 + feed.below(6)
                assert engine.handle(vcpu, vp, Wrmsr(msr, feed.word(), 0, _page))  # type: ignore[arg-type]
                assert engine.handle(vcpu, vp, Rdmsr(msr, 0, _page))  # type: ignore[arg-type]
            case 4:
                engine.post_message(feed.below(VPS), 2, 1, feed.take(feed.below(241)), lambda status: None)
                engine.signal_event(feed.below(VPS), 2, feed.below(2048))
            case _:
                loop.run()
    loop.run()
    device.reset()
    engine.reset()


def crash_text(data: bytes) -> None:
    """A guest's last words: any text anywhere, and any numbers."""
    feed = Feed(data)
    memory, registers = _memory(), CrashRegisters()
    text = feed.take(feed.below(600))
    gpa = _gpa(feed)
    if memory.contains(gpa, len(text)):
        memory.write(gpa, text)
    for value in (feed.word(), feed.word(), feed.word(), gpa if feed.flag() else _gpa(feed), feed.word()):
        registers.write(Msr.CRASH_P0 + feed.below(5) if feed.below(8) == 0 else Msr.CRASH_P0, value, memory)
    registers.parameters[3] = gpa
    report = registers.write(Msr.CRASH_CTL, feed.choice((1 << 63, 3 << 62, 1 << 62, feed.number(8))), memory)
    if report is not None:
        assert "\n" not in report.summary()
        report.text.encode()


TARGETS = {
    "guest_hyperv_user": user,
    "guest_hyperv_kernel": kernel,
    "guest_crash_text": crash_text,
}
