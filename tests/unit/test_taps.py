"""The taps below VMBus, from hypercalls to ioctls: what comes out of rules there, and what bounds it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.errors import HostError
from pyvmm.faults import FaultSet
from pyvmm.hyperv.tlfs import HypercallCode, HypercallStatus, Msr
from pyvmm.hyperv.user import UserEngine
from pyvmm.kvm import structs
from pyvmm.kvm.abi import Op
from pyvmm.kvm.handle import Argument, Handle, KvmError
from pyvmm.kvm.vm import Vm
from pyvmm.machine.devices import Parts
from pyvmm.machine.reporting import FreePages
from pyvmm.memory import GuestMemory
from pyvmm.tap import Item, Taps
from tests.support.fake_clock import FakeLoop
from tests.support.fake_kvm import FakeVcpu, FakeVm

SIMP, SIEFP, PAGE = 0x3000, 0x4000, 0x5000


class Partition:
    """A user engine of two VPs with its SynIC set up, and rules for its taps."""

    def __init__(self) -> None:
        self.loop, self.vm, self.vcpu = FakeLoop(), FakeVm(), FakeVcpu()
        self.memory = GuestMemory.flat(1 << 20)
        self.engine = UserEngine(2, self.memory, self.loop)  # type: ignore[arg-type]
        self.engine.setup_vm(self.vm)  # type: ignore[arg-type]
        for msr, value in ((Msr.SIMP, SIMP | 1), (Msr.SIEFP, SIEFP | 1), (Msr.SINT0 + 2, 0xF3)):
            self.engine._write(self.vcpu, 0, msr, value)  # type: ignore[arg-type]
        self.loop.run()
        self.taps = self.engine.taps
        self.taps.after, self.taps.post = self.loop.after, self.loop.post
        self.faults = FaultSet(self.taps)
        self.posted: list[bytes] = []

        def listen(connection: int, kind: int, payload: bytes) -> int:
            self.posted.append(payload)
            return 0

        self.engine.listen(listen)
        self.memory.write(0x1000, (1).to_bytes(4, "little") + bytes(4) + (1).to_bytes(4, "little"))
        self.memory.write(0x100C, (8).to_bytes(4, "little") + b"contact!")

    def call(self, gpa: int = 0x1000, code: int = HypercallCode.POST_MESSAGE) -> int:
        return self.engine.hypercalls.call(code, gpa, 0)

    def read(self, msr: int) -> int:
        return self.engine._read(self.vcpu, 0, msr)  # type: ignore[arg-type]

    def write(self, msr: int, value: int) -> None:
        self.engine._write(self.vcpu, 0, msr, value)  # type: ignore[arg-type]
        self.loop.run()


@pytest.fixture
def partition() -> Partition:
    return Partition()


# Hypercalls


def test_a_call_may_be_lost_repeated_or_late_and_succeeds(partition: Partition) -> None:
    for rule, calls in (("drop", 0), ("duplicate,times=2", 3), ("insert,to.input1=0x1000", 2)):
        with partition.faults.add(f"hypercall.in:{rule},call=POST_MESSAGE"):
            assert partition.call() == 0
            assert partition.posted == [b"contact!"] * calls
            partition.posted.clear()
    with partition.faults.add("hypercall.in:delay,seconds=1"):
        assert partition.call() == 0
        partition.loop.advance(1.1)
        assert partition.posted == [b"contact!"]


def test_a_call_with_another_input_is_checked_as_any(partition: Partition) -> None:
    for address in ("0x1001", "0xfffffffffffffff8"):
        with partition.faults.add(f"hypercall.in:change,to.input1={address}"):
            assert partition.call() in (HypercallStatus.INVALID_ALIGNMENT, HypercallStatus.INVALID_PARAMETER)


def test_a_status_is_changed_after_the_call_was_done(partition: Partition) -> None:
    partition.faults.add("post-message-busy,count=1")
    assert (partition.call(), partition.call()) == (HypercallStatus.INSUFFICIENT_BUFFERS, 0)
    assert len(partition.posted) == 2
    assert partition.call(code=0x5555) == HypercallStatus.INVALID_HYPERCALL_CODE


# Interrupts and EOM


def test_interrupts_are_lost_repeated_and_late(partition: Partition) -> None:
    for rule, count in (("drop", 0), ("duplicate,times=4", 5), ("change,to.sint=3", 0), ("pass", 1)):
        with partition.faults.add(f"interrupt.out:{rule}"):
            partition.engine.signal_event(0, 2, 5)
            partition.memory.write(SIEFP, bytes(4096))
            assert len(partition.vm.msis) == count
            partition.vm.msis.clear()
    with partition.faults.add("interrupt.out:delay,seconds=0.5"):
        partition.engine.signal_event(0, 2, 5)
        partition.loop.advance(0.6)
        assert len(partition.vm.msis) == 1


@pytest.mark.parametrize(
    ("point", "change"), [("interrupt.out", "to.vp=2"), ("interrupt.out", "to.sint=16"), ("eom.in", "to.vp=9")]
)
def test_a_vp_or_sint_that_is_not_there_is_refused(partition: Partition, point: str, change: str) -> None:
    fault = partition.faults.add(f"{point}:change,{change}")
    partition.engine.signal_event(0, 2, 5)
    partition.write(Msr.EOM, 0)
    assert fault.rules[0].last_failure.startswith("no ")


def test_an_eom_that_is_lost_or_late_keeps_messages_waiting(partition: Partition) -> None:
    done: list[int] = []
    for _ in range(3):
        partition.engine.post_message(0, 2, 1, b"x", done.append)
    free: Callable[[], None] = lambda: partition.memory.write(SIMP + 2 * 256, bytes(4))  # noqa: E731
    assert done.count(0) == 1
    partition.faults.add("eom.in:drop,once")
    free()
    partition.write(Msr.EOM, 0)
    assert done.count(0) == 1
    partition.faults.add("eom.in:delay,seconds=1")
    partition.write(Msr.EOM, 0)
    assert done.count(0) == 1
    partition.loop.advance(1.1)
    assert done.count(0) == 2


# Clock


def test_the_reference_time_is_changed_for_guest_and_host(partition: Partition) -> None:
    partition.faults.add("clock.out:change,what=msr,to.time=7")
    partition.faults.add("clock.out:change,what=host,to.time=9")
    assert (partition.read(Msr.TIME_REF_COUNT), partition.engine.reference_time()) == (7, 9)
    partition.faults.clear()
    partition.faults.add("clock.out:drop")
    assert partition.read(Msr.TIME_REF_COUNT) != 7


def test_a_tsc_page_is_changed_or_not_written(partition: Partition) -> None:
    partition.memory.write(PAGE, b"\xee" * 4096)
    with partition.faults.add("tsc-page-missing"):
        partition.write(Msr.REFERENCE_TSC, PAGE | 1)
        assert partition.memory.read(PAGE, 4) == b"\xee" * 4
    with partition.faults.add("tsc-page-invalid"):
        partition.write(Msr.REFERENCE_TSC, PAGE | 1)
        assert partition.memory.read(PAGE, 4) == bytes(4)
    with partition.faults.add("clock.out:change,what=page,at=65000,bytes=01") as fault:  # beyond the guest's RAM
        partition.memory.write(PAGE, bytes(4096))
        with pytest.raises(Exception, match=r"RAM|memory"):
            partition.write(Msr.REFERENCE_TSC, (1 << 20) - 4096 | 1)
        assert fault.hits == 1


# Discards


@pytest.fixture
def discards() -> Iterator[tuple[FaultSet, FakeLoop, Callable[[int, int], Any], GuestMemory]]:
    memory, loop, taps = GuestMemory.flat(1 << 20), FakeLoop(), Taps()
    taps.after, taps.post = loop.after, loop.post
    parts: Any = Parts(None, None, memory, SimpleNamespace(taps=taps))  # type: ignore[arg-type]
    memory.write(0x8000, b"\xaa" * 0x4000)
    yield FaultSet(taps), loop, parts.discard, memory


def test_a_discard_is_lost_late_or_elsewhere(
    discards: tuple[FaultSet, FakeLoop, Callable[[int, int], Any], GuestMemory],
) -> None:
    faults, loop, discard, memory = discards
    with faults.add("discard.out:drop,by=balloon"):
        discard(0x8000, 0x1000)
        assert memory.read(0x8000, 1) == b"\xaa"
    with faults.add("discard.out:delay,seconds=1"):
        discard(0x8000, 0x1000)
        assert memory.read(0x8000, 1) == b"\xaa"
        loop.advance(1.1)
        assert memory.read(0x8000, 1) == b"\0"
    with faults.add("discard.out:change,to.gpa=0x9001,to.size=0x1fff"):  # cut to whole pages
        discard(0xB000, 0x1000)
        assert memory.read(0x9000, 1) + memory.read(0xA000, 1) + memory.read(0xB000, 1) == b"\0\xaa\xaa"
    with faults.add("discard.out:change,to.gpa=0,to.size=0xffffffffffffffff"):  # only RAM is discarded
        discard(0xB000, 0x1000)
        assert memory.read(0xB000, 1) == b"\0"


def test_a_discard_fails_as_the_host_s_would(
    discards: tuple[FaultSet, FakeLoop, Callable[[int, int], Any], GuestMemory],
) -> None:
    faults, _, _, memory = discards
    free = FreePages(memory, faults.taps.discard).discard
    with faults.add("discards-fail"), pytest.raises(HostError, match="Cannot allocate memory"):
        free(0x8000, 0x1000)
    with faults.add("discard.out:drop"):
        assert free(0x8000, 0x1000) == 0
    assert free(0x8000, 0x1000) == 0x1000


# KVM


class Recording(Vm):
    """A VM that notes its ioctls instead of issuing them."""

    def __init__(self, taps: Taps) -> None:
        super().__init__(os.open("/dev/null", os.O_RDWR), 4096)
        self.tap, self.memslot_tap = taps.ioctl, taps.memslot
        self.issued: list[tuple[str, bytes]] = []

    def ioctl(self, op: Op, argument: Argument = 0, about: str = "", *, tapped: bool = False) -> int:
        if self.tap.on and not tapped:
            return super().ioctl(op, argument, about)
        content = argument.to_bytes(8, "little") if isinstance(argument, int) else bytes(argument)
        self.issued.append((op.name, content))
        return 5 if op == Op.CREATE_VCPU else 0


@pytest.fixture
def vm() -> Iterator[tuple[Recording, FaultSet, FakeLoop]]:
    taps, loop = Taps(), FakeLoop()
    taps.after, taps.post = loop.after, loop.post
    with Recording(taps) as made:
        yield made, FaultSet(taps), loop


def slots(vm: Recording) -> list[tuple[int, ...]]:
    regions = [structs.UserspaceMemoryRegion.from_buffer_copy(data) for name, data in vm.issued]
    return [(each.slot, each.flags, each.guest_phys_addr, each.memory_size, each.userspace_addr) for each in regions]


def test_a_memory_slot_is_lost_moved_shortened_or_readonly(vm: tuple[Recording, FaultSet, FakeLoop]) -> None:
    made, faults, _ = vm
    made.set_memory(1, 0x1000, 0x3000, 0x70000000)
    made.issued.clear()
    for rule, expected in (
        ("drop", []),
        ("change,to.gpa=0x9000", [(16, 0, 0x9000, 0x3000, 0x70000000)]),
        ("change,to.size=0x1000", [(16, 0, 0x1000, 0x1000, 0x70000000)]),
        ("change,to.readonly=1", [(16, 2, 0x1000, 0x3000, 0x70000000)]),
    ):
        with faults.add(f"memslot.out:{rule},slot=16"):
            made.set_memory(16, 0x1000, 0x3000, 0x70000000)
            assert slots(made) == expected
        made.issued.clear()
        made.set_memory(16, 0, 0, 0)
        assert len(made.issued) == len(expected)  # KVM is not asked to delete a slot that it never had
        made.issued.clear()


@pytest.mark.parametrize("change", ["to.size=0x4000", "to.size=0", "to.gpa=0xfffffffffffff000"])
def test_a_memory_slot_never_reaches_beyond_its_host_memory(
    vm: tuple[Recording, FaultSet, FakeLoop], change: str
) -> None:
    made, faults, _ = vm
    with faults.add(f"memslot.out:change,{change}"), pytest.raises(HostError, match="memory slot 16"):
        made.set_memory(16, 0x1000, 0x3000, 0x70000000)
    assert made.issued == []


def test_a_memory_slot_fails_and_its_deletion_crosses_no_tap(vm: tuple[Recording, FaultSet, FakeLoop]) -> None:
    made, faults, _ = vm
    with faults.add("memslot.out:fail,errno=ENOMEM"):
        with pytest.raises(KvmError, match=r"KVM_SET_USER_MEMORY_REGION\(slot 16, .*ENOMEM"):
            made.set_memory(16, 0x1000, 0x3000, 0x70000000)
        made.set_memory(16, 0, 0, 0)
    assert [each[3] for each in slots(made)] == [0]


def test_an_ioctl_fails_with_the_error_and_its_cause(vm: tuple[Recording, FaultSet, FakeLoop]) -> None:
    made, faults, _ = vm
    faults.add("vcpu-refused")
    with pytest.raises(KvmError, match="out of memory") as failed:
        made.ioctl(Op.CREATE_VCPU, 1, "id 1")
    assert (failed.value.errno, made.issued) == (errno.ENOMEM, [])


def test_interrupt_lines_are_lost_repeated_changed_and_late(vm: tuple[Recording, FaultSet, FakeLoop]) -> None:
    made, faults, loop = vm
    for rule, levels in (
        ("drop", []),
        ("duplicate", [1, 1]),
        ("change,at=4,bytes=00000000", [0]),
        ("reorder", []),
    ):
        with faults.add(f"ioctl.out:{rule},op=IRQ_LINE"):
            made.set_irq_line(4, 1)
            assert [data[4] for _, data in made.issued] == levels
        made.issued.clear()
    made.set_irq_line(4, 0)
    assert [data[4] for _, data in made.issued] == [0, 1]  # the one that was held back comes second
    made.issued.clear()
    with faults.add("ioctl.out:delay,seconds=1,op=IRQ_LINE"):
        made.set_irq_line(4, 1)
        loop.advance(1.1)
        assert [data[4] for _, data in made.issued] == [1]
    with (
        faults.add("ioctl.out:change,bytes=00,at=100,op=IRQ_LINE") as fault,
        pytest.raises(HostError, match="takes 8"),
    ):
        made.set_irq_line(4, 1)
    assert fault.hits == 1


def test_an_ioctl_with_a_result_is_issued_once_and_as_it_is(vm: tuple[Recording, FaultSet, FakeLoop]) -> None:
    made, _, _ = vm
    late: list[Callable[[], Any]] = []
    results: list[Callable[[Item, Callable[[Item], Any]], Any]] = [
        lambda item, deliver: None,
        lambda item, deliver: (deliver(item), deliver(item))[1],
        lambda item, deliver: deliver(item.but(b"\xff" * 8)),
    ]

    def handler(item: Item, deliver: Callable[[Item], Any]) -> Any:
        late.append(lambda: deliver(item))
        return results[len(late) - 1](item, deliver)

    made.tap.attach(handler)
    for _ in results:
        assert made.ioctl(Op.CREATE_VCPU, 1) == 5
        assert made.issued == [("CREATE_VCPU", bytes([1]) + bytes(7))]
        with pytest.raises(HostError, match="cannot be issued later"):
            late[-1]()
        made.issued.clear()


def test_handles_of_a_vm_share_its_tap(tmp_path: Path) -> None:
    taps = Taps()
    handle = Handle(os.open("/dev/null", os.O_RDWR), "vm")
    with handle:
        assert not handle.tap.on and handle.tap is not taps.ioctl
    with pytest.raises(KeyError):
        taps["run"]
