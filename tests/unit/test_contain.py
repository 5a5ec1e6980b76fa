"""An unexpected exception fails only the access that raised it, and is reported once."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from types import SimpleNamespace
from uuid import UUID

import pytest

from pyvmm import contain, trace
from pyvmm.errors import HostError
from pyvmm.hyperv.hypercall import Hypercalls
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.inbox import Inbox
from pyvmm.iomap import IoMap
from pyvmm.kvm import Exit, FailEntry, InternalError, IoIn, IoOut, Rdmsr, Unknown
from pyvmm.kvm.abi import RUN_EXIT
from pyvmm.loop import Loop
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.offer import Offer
from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import BALLOON, Recorder


@pytest.fixture(autouse=True)
def as_in_use(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(contain, "strict", False)
    monkeypatch.setattr(contain, "_reported", set())
    before = contain.counts.copy()
    yield
    contain.counts.clear()
    contain.counts.update(before)


class Broken:
    """A device with a mistake in it."""

    def read(self, offset: int, size: int) -> int:
        return [0][offset + 1]

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError(f"value \x1b]0;{value}")


def test_a_port_that_fails_reads_as_all_ones_and_ignores_writes(capsys: pytest.CaptureFixture[str]) -> None:
    ports = IoMap("port")
    ports.claim(0x10, 2, Broken())
    assert [ports.read(0x10, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    ports.write(0x11, 1, 7)
    assert contain.counts["port 0x10 read"] == 3
    assert contain.counts["port 0x10 write"] == 1
    told = capsys.readouterr().err
    assert told.count("IndexError") == 1, "once a place"
    assert told.count("Traceback") == 2
    assert "\x1b" not in told


def test_no_more_places_are_reported_than_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(contain.REPORT_LIMIT + 5):
        kind = type(f"Error{number}", (Exception,), {})
        contain.contain("here", kind())
    assert capsys.readouterr().err.count("the machine continues") == contain.REPORT_LIMIT
    assert contain.counts["here"] == contain.REPORT_LIMIT + 5


def test_what_the_host_refused_is_one_line_and_traced(capsys: pytest.CaptureFixture[str]) -> None:
    tail = trace.TailSink()
    trace.subscribe("contain.*", tail)
    try:
        contain.contain("here", HostError("KVM_IRQ_LINE: refused"))
    finally:
        trace.unsubscribe(tail)
    assert capsys.readouterr().err.splitlines() == [
        "pyvmm: here: unexpected error, the machine continues",
        "  KVM_IRQ_LINE: refused",
    ]
    (record,) = tail.records
    assert record.text() == "contain.exception here: HostError('KVM_IRQ_LINE: refused')"


def test_strict_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contain, "strict", True)
    ports = IoMap("port")
    ports.claim(0x10, 2, Broken())
    with pytest.raises(IndexError):
        ports.read(0x10, 1)


def test_a_hypercall_that_fails_has_a_status() -> None:
    calls = Hypercalls(GuestMemory.flat(4096), lambda connection: [True][connection])
    assert calls.call(0x1005D, 7, 0) == HypercallStatus.OPERATION_DENIED


def test_a_device_that_fails_has_its_channel_broken_until_it_is_opened_anew() -> None:
    class Fails(Recorder):
        def received(self, payload: bytes) -> None:
            if payload == b"fail!!!!":
                raise KeyError(payload)
            super().received(payload)

    guest, device = FakeGuest(), Fails()
    driver = guest.open(device)
    driver.send(b"fail!!!!")
    assert driver.channel.broken == "an error in pyvmm: KeyError"
    driver.send(b"12345678")
    assert device.payloads == []
    guest.reopen()
    guest.send(b"12345678")
    assert device.payloads == [b"12345678"]


@pytest.mark.parametrize("call", ["opened", "closed", "bus_connected"])
def test_a_device_that_fails_elsewhere_leaves_the_bus_alive(call: str) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    guest, device, healthy = FakeGuest(), Recorder(), Recorder(Offer("healthy", type=BALLOON, instance=UUID(int=9)))
    setattr(device, call, fail)
    guest.open(device)
    guest.close()
    driver = guest.open(healthy)
    driver.send(b"12345678")
    assert healthy.payloads == [b"12345678"]


def test_a_timer_of_a_channel_that_fails_stops_the_channel_only() -> None:
    guest, device = FakeGuest(), Recorder()
    driver = guest.open(device)
    device.channel.after(1.0, lambda: [][0])
    guest.advance(seconds=2)
    assert driver.channel.broken == "an error in pyvmm: IndexError"


class FailingEngine:
    def handle(self, *_: object) -> bool:
        raise OverflowError("date value out of range")


def test_a_vcpu_goes_on_after_an_exit_that_failed() -> None:
    hardware = Hardware.__new__(Hardware)
    hardware.engine = FailingEngine()  # type: ignore[assignment]
    hardware._ports = hardware._mmio = IoMap("port")
    hardware._coalesced = None
    hardware._inbox = Inbox(lambda data: None, Loop())
    handle = hardware._handler(None, 0)  # type: ignore[arg-type]
    page = mmap.mmap(-1, 8192)
    assert handle(Rdmsr(0x40000000, 0, page))
    assert page[RUN_EXIT] == 1, "#GP"
    assert handle(IoOut(0xEC, 1, 1, b"\0"))
    assert handle(IoIn(0x80, 1, 1, page, 4096))
    assert page[4096] == 0xFF
    assert contain.counts["Rdmsr"] == contain.counts["IoOut"] == 1


@pytest.mark.parametrize(
    ("exit", "text"),
    [
        (FailEntry(0x80000021, 0), "KVM cannot enter the guest, hardware reason 0x80000021"),
        (InternalError(1, ()), "KVM internal error 1"),
        (Unknown(0, 0x42), r"unknown KVM exit \(reason 0, hardware reason 0x42\)"),
        (Unknown(99), "reason 99"),
    ],
)
def test_what_kvm_cannot_do_ends_the_machine_in_one_line(exit: Exit, text: str) -> None:
    failed: list[BaseException] = []
    hardware = Hardware.__new__(Hardware)
    hardware.engine = FailingEngine()  # type: ignore[assignment]
    hardware._ports = hardware._mmio = IoMap("port")
    hardware._coalesced = None
    hardware._inbox = Inbox(lambda data: None, Loop())
    hardware._failed = failed.append
    vcpu = SimpleNamespace(regs=SimpleNamespace(rip=0xFFF0))
    assert not hardware._handler(vcpu, 0)(exit)  # type: ignore[arg-type]
    (error,) = failed
    assert isinstance(error, HostError)
    assert re.search(text, str(error))
    assert "\n" not in str(error)
