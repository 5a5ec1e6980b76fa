"""Oracles that judge by the host's own state, with a fake guest: silent, then tripped by a planted fault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.devices.balloon.states import Idle
from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.protocol import HeartbeatBody
from pyvmm.testbed.oracles import accounting, devices, hang, wakeups
from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.devices import ROOT
from pyvmm.testbed.oracles.signals import Signals
from tests.support.fake_guest import FakeGuest


class Bed:
    """The machine around a fake guest's bus. Its loop's steps move no clock: what lasts, lasts."""

    def __init__(self, guest: FakeGuest, balloon: BalloonDevice | None = None) -> None:
        page = SimpleNamespace(enable=False, gpa=0)
        vps = [SimpleNamespace(queues={}, siefp=page)]
        self.queues: dict[int, Any] = vps[0].queues
        self.machine: Any = SimpleNamespace(
            outcome=None,
            state="running",
            resets=0,
            window=None,
            balloon=balloon,
            agent=SimpleNamespace(ready=True, busy=0, release="6.1.0", execute=self._execute),
            services=SimpleNamespace(bus=guest.bus),
            engine=SimpleNamespace(synic=SimpleNamespace(vps=vps)),
            slot=SimpleNamespace(vcpu_snapshots=list, hardware=None),
            console_tail=SimpleNamespace(since=lambda offset: (0, b"")),
            memory=guest.memory,
        )
        self.loop: Any = SimpleNamespace(step=lambda seconds: guest.loop.run())
        self.output = b""

    def _execute(self, command: str, output: Any, done: Any) -> Any:
        output("out", self.output)
        done(0)
        return lambda: None


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "PATIENCE", 0.05)
    monkeypatch.setattr(devices, "PATIENCE", 0.05)
    monkeypatch.setattr(accounting, "PATIENCE", 0.05)


def beating(guest: FakeGuest) -> Heartbeat:
    heartbeat = Heartbeat()
    guest.open(heartbeat).accept_versions()
    return heartbeat


def test_bytes_that_the_guest_does_not_read(guest: FakeGuest) -> None:
    beating(guest)
    oracle = wakeups.Wakeups(Bed(guest))
    assert oracle.judge(Answer()) == []
    guest.advance(2.5)
    (finding,) = oracle.judge(Answer())
    assert finding.line.startswith("heartbeat: 96 bytes that the guest does not read")
    assert "ring to guest: read index" in finding.details
    guest.take(HeartbeatBody, 1)
    assert oracle.judge(Answer()) == []


def test_a_ring_that_fills_while_it_is_watched(guest: FakeGuest) -> None:
    beating(guest)
    guest.advance(2.5)
    bed = Bed(guest)
    bed.loop.step = lambda seconds: guest.advance(0.5)
    (finding,) = wakeups.Wakeups(bed).judge(Answer())
    assert "bytes that the guest does not read" in finding.line


def test_bytes_for_the_host_without_a_signal(guest: FakeGuest) -> None:
    beating(guest)
    guest.driver.outgoing.put(bytes(16))
    (finding,) = wakeups.Wakeups(Bed(guest)).judge(Answer())
    assert finding.line.startswith("heartbeat: 40 bytes for the host, which was not signalled")
    guest.driver.signal()
    assert wakeups.Wakeups(Bed(guest)).judge(Answer()) == []


def test_messages_that_wait_for_their_slot(guest: FakeGuest) -> None:
    bed = Bed(guest)
    bed.queues[2] = [object(), object()]
    (finding,) = wakeups.Wakeups(bed).judge(Answer())
    assert finding.line.startswith("2 messages wait for the slot of SINT 2 on VP 0")


def test_a_paused_machine_reads_nothing_and_that_is_no_finding(guest: FakeGuest) -> None:
    beating(guest)
    guest.advance(2.5)
    bed = Bed(guest)
    bed.machine.state = "paused"
    assert wakeups.Wakeups(bed).judge(None) == []
    assert hang.Hang(bed).judge(None) == []


def test_a_heartbeat_that_is_not_answered(guest: FakeGuest) -> None:
    heartbeat = beating(guest)
    bed = Bed(guest)
    guest.advance(2.5)
    guest.answer(HeartbeatBody(guest.take(HeartbeatBody, 1)[0].sequence + 1))
    assert hang.Hang(bed).judge(Answer()) == []
    guest.advance(9)
    (finding,) = hang.Hang(bed).judge(Answer())
    assert finding.line.startswith("no heartbeat for ")
    assert heartbeat.silence > 8


def test_a_heartbeat_that_was_never_answered(guest: FakeGuest) -> None:
    beating(guest)
    oracle = hang.Hang(Bed(guest))
    assert oracle.judge(Answer()) == []
    guest.advance(9)
    (finding,) = oracle.judge(Answer())
    assert finding.line == "no heartbeat for 9 s, 0 answers before"


def interrupts(count: int) -> Answer:
    return Answer({"/proc/interrupts": [f"HYP:    {count}      3   Hypervisor callback interrupts"]})


def test_signals_and_interrupts_without_packets(guest: FakeGuest) -> None:
    beating(guest)
    oracle = Signals(Bed(guest))
    oracle.begin(interrupts(100))
    assert oracle.judge(interrupts(120)) == []
    for _ in range(100):
        guest.driver.signal()
        guest.loop.run()
    (finding,) = oracle.judge(interrupts(120))
    assert finding.line == "the guest signalled heartbeat 100 times for 0 packets"
    (finding,) = oracle.judge(interrupts(500))
    assert finding.line == "the guest had 380 VMBus interrupts for 0 packets"
    guest.driver.channel.signals_out += 200
    (finding,) = oracle.judge(interrupts(500))
    assert finding.line == "the host signalled heartbeat 200 times for 0 packets"
    assert oracle.judge(None) == []


def listed(guest: FakeGuest, **relids: str) -> Answer:
    files = {}
    for each in guest.bus.info():
        name = str(each["guid"])
        files[f"{ROOT}{name}/device_id"] = ["{" + name + "}"]
        files[f"{ROOT}{name}/id"] = [relids.get(each["name"], str(each["relid"]))]
    return Answer(files)


def test_devices_that_only_one_side_knows(guest: FakeGuest) -> None:
    heartbeat = beating(guest)
    bed = Bed(guest)
    oracle = devices.DeviceList(bed)
    guid = str(heartbeat.offer.instance)
    assert oracle.judge(listed(guest)) == []
    assert oracle.judge(None) == []
    stale = listed(guest)
    stale.files[f"{ROOT}x/device_id"], stale.files[f"{ROOT}x/id"] = ["{dead}"], ["9"]
    bed.output = "".join(f"{path}:{lines[0]}\n" for path, lines in stale.files.items()).encode()
    assert [each.line for each in oracle.judge(stale)] == ["the guest has dead, which is not offered"]
    bed.output = b""
    assert [each.line for each in oracle.judge(Answer())] == [f"the guest lacks heartbeat {guid}"]
    other = listed(guest, heartbeat="7")
    bed.output = "".join(f"{path}:{lines[0]}\n" for path, lines in other.files.items()).encode()
    (finding,) = oracle.judge(other)
    assert finding.line == f"channels of heartbeat {guid}: [7] in the guest, [1] offered"


BOOT, HOT = 131072, 1 << 20


class Window:
    """A hot-add window of 128 MiB, and how much of it is mapped."""

    start, end, pages, mapped_pages = HOT, HOT + 32768, 32768, 0


def figures(total: int, *, added: int = 0, ballooned: int = 0, offline: int | None = None) -> Answer:
    memory = "/sys/devices/system/memory/"
    files = {
        "/proc/meminfo": [f"MemTotal:  {total * 4} kB"],
        f"{memory}block_size_bytes": ["8000000"],
        "/sys/kernel/debug/hv-balloon": [f"pages_added : {added}", f"pages_ballooned : {ballooned}"],
    }
    if offline is not None:
        files[f"{memory}memory{offline}/state"] = ["offline"]
    return Answer(files)


class Books:
    """The host's books of a guest whose kernel has 120000 pages in its MemTotal."""

    def __init__(self, guest: FakeGuest, release: str = "6.1.0") -> None:
        self.window = Window()
        self.ledger = Ledger([PageRange(0, BOOT)], lambda gpa, size: None, self.window)  # type: ignore[arg-type]
        balloon: Any = SimpleNamespace(ready=True, machine=SimpleNamespace(state=Idle(), ledger=self.ledger))
        self.bed = Bed(guest, balloon)
        self.bed.machine.window, self.bed.machine.agent.release = self.window, release
        guest.bus.channel = lambda device, sub_channel=0: None  # type: ignore[method-assign]
        self.oracle = accounting.Accounting(self.bed)
        self.oracle.begin(figures(120000))

    def judge(self, answer: Answer) -> list[str]:
        lines = [f"{path}:{each}\n" for path, found in answer.files.items() for each in found]
        self.bed.output = "".join(lines).encode()
        return [each.line for each in self.oracle.judge(answer)]


def test_books_that_add_up(guest: FakeGuest) -> None:
    books = Books(guest)
    assert books.judge(figures(120000)) == []
    books.ledger.record_released([(1000, 500)])
    assert books.judge(figures(119500, ballooned=500)) == []
    books.ledger.added.ram.insert([(HOT, 32768)])
    books.window.mapped_pages = 32768
    assert books.judge(figures(152268, added=32768, ballooned=500)) == []
    assert books.judge(figures(119500, added=32768, ballooned=500, offline=HOT // 32768)) == []


def test_books_of_a_kernel_that_does_not_lower_its_total(guest: FakeGuest) -> None:
    books = Books(guest, "5.10.0-46-cloud-amd64")
    books.ledger.record_released([(1000, 500)])
    assert books.judge(figures(120000, ballooned=500)) == []
    assert books.judge(figures(119500, ballooned=500)) == ["the guest's memory is off by -500 pages"]


def test_pages_that_are_lost_doubled_or_mapped_without_a_grant(guest: FakeGuest) -> None:
    books = Books(guest)
    assert books.judge(figures(119000)) == ["the guest's memory is off by -1000 pages"]
    assert books.judge(figures(120000, ballooned=7)) == ["the driver counts 7 ballooned pages, the host 0"]
    assert books.judge(figures(120000, added=9)) == ["the driver counts 9 added pages, the host 0"]
    books.window.mapped_pages = 5
    assert books.judge(figures(120000)) == ["5 pages of the hot-add window are mapped, 0 granted"]


def test_pages_that_were_not_the_guests_and_pages_on_their_way(guest: FakeGuest) -> None:
    books = Books(guest)
    books.ledger.record_released([(1 << 30, 3), (10, 1)])
    assert books.judge(figures(119999, ballooned=1)) == ["the guest released 3 pages that were not its own"]
    books.bed.machine.balloon.machine.state = object()  # a transfer goes on
    assert books.judge(figures(1)) == []
