"""What rules do with items: every action at every point, states and counts, and what goes wrong without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyvmm import contain, trace
from pyvmm.errors import ConfigError, GuestProtocolError, HostError, NotFoundError
from pyvmm.faults import FaultError, FaultNeverHit, FaultSet
from pyvmm.faults.fault_set import PENDING_LIMIT
from pyvmm.faults.parse import RULES_LIMIT
from pyvmm.faults.points import POINTS
from pyvmm.tap import Item, Taps
from tests.support.fake_clock import FakeLoop

BYTES = bytes.fromhex("0600000000000000010000000700000000000000")  # OPEN_RESULT of relid 1, open id 7
FIELDS: dict[str, dict[str, int | str]] = {
    "hypercall.in": {"code": 0x5C, "control": 0x5C, "input1": 1, "input2": 2},
    "hypercall.out": {"code": 0x5C, "status": 0},
    "message.in": {"channel": "x", "connection": 1},
    "message.out": {"channel": "x", "vp": 0, "synic_type": 1},
    "packet.in": {"channel": "x", "relid": 3},
    "packet.out": {"channel": "x", "relid": 3},
    "index.in": {"channel": "x", "relid": 3, "ring": "guest", "word": "write", "value": 8},
    "index.out": {"channel": "x", "relid": 3, "ring": "host", "word": "write", "value": 8},
    "event.in": {"channel": "x", "relid": 3},
    "event.out": {"channel": "x", "relid": 3, "vp": 0, "sint": 2, "flag": 3},
    "eom.in": {"vp": 0},
    "interrupt.out": {"vp": 0, "sint": 2},
    "clock.out": {"what": "msr", "time": 5},
    "discard.out": {"by": "balloon", "gpa": 0x1000, "size": 0x2000},
    "memslot.out": {"slot": 16, "gpa": 0x1000, "size": 0x2000, "readonly": 0},
    "ioctl.out": {"op": "IRQ_LINE", "handle": "vm"},
}
Value = dict[str, int | str]


OPS = {"ioctl.out": ",op=IRQ_LINE"}  # without it some actions are refused there


class Machine:
    """Taps with guest time that a test moves, and layers that note what they get."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.taps = Taps()
        self.taps.after, self.taps.post = self.loop.after, self.loop.post
        self.faults = FaultSet(self.taps)
        self.got: list[Item] = []

    def cross(self, point: str, data: bytes = BYTES, fields: Value | None = None) -> object:
        name, _, direction = point.partition(".")
        tap = self.taps[name]
        fields = FIELDS[point] if fields is None else fields
        if not tap.on:
            return self.deliver(Item(point, data, fields))
        return tap.cross(direction, data, fields, self.deliver)  # type: ignore[arg-type]

    def deliver(self, item: Item) -> object:
        self.got.append(item)
        return len(self.got)

    def data(self) -> list[bytes]:
        return [each.data for each in self.got]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def numbers(machine: Machine) -> list[int]:
    return [each.data[0] for each in machine.got]


def having(action: str) -> list[str]:
    return [point.name for point in POINTS.values() if action in point.actions]


def test_the_fields_here_are_those_of_the_points() -> None:
    for name, point in POINTS.items():
        assert {*point.fields, *point.settable} == set(FIELDS[name]), name


@pytest.mark.parametrize("point", having("pass"))
def test_pass_counts(machine: Machine, point: str) -> None:
    fault = machine.faults.add(f"{point}:pass")
    assert machine.cross(point) == 1
    assert fault.hits == 1 and machine.got == [Item(point, BYTES, FIELDS[point])]


@pytest.mark.parametrize("point", having("drop"))
def test_drop_loses_an_item(machine: Machine, point: str) -> None:
    machine.faults.add(f"{point}:drop,once{OPS.get(point, '')}")
    assert machine.cross(point) is None
    assert machine.cross(point) == 1


@pytest.mark.parametrize("point", having("delay"))
def test_delay_delivers_in_guest_time(machine: Machine, point: str) -> None:
    machine.faults.add(f"{point}:delay,seconds=2,once{OPS.get(point, '')}")
    assert machine.cross(point) is None
    machine.loop.advance(1.9)
    assert not machine.got
    machine.loop.advance(0.2)
    assert machine.got == [Item(point, BYTES, FIELDS[point])]


@pytest.mark.parametrize("point", having("duplicate"))
def test_duplicate_delivers_more(machine: Machine, point: str) -> None:
    machine.faults.add(f"{point}:duplicate,times=3,once{OPS.get(point, '')}")
    assert machine.cross(point) == 4
    assert machine.got == [Item(point, BYTES, FIELDS[point])] * 4


@pytest.mark.parametrize("point", having("reorder"))
def test_reorder_holds_an_item_until_others_have_crossed(machine: Machine, point: str) -> None:
    machine.faults.add(f"{point}:reorder,others=2,once{OPS.get(point, '')}")
    for number in range(4):
        machine.cross(point, bytes([number]))
    assert numbers(machine) == [1, 2, 0, 3]


@pytest.mark.parametrize("point", having("truncate"))
@pytest.mark.parametrize(("length", "left"), [(12, 12), (-8, 12), (100, 20), (0, 0), (-100, 0)])
def test_truncate_cuts_from_either_end(machine: Machine, point: str, length: int, left: int) -> None:
    machine.faults.add(f"{point}:truncate,length={length}")
    machine.cross(point)
    assert machine.data() == [BYTES[:left]]


@pytest.mark.parametrize("point", having("change"))
def test_change_stores_bytes_or_fields(machine: Machine, point: str) -> None:
    if POINTS[point].settable:
        name = [each for each in POINTS[point].settable if isinstance(FIELDS[point][each], int)][-1]
        machine.faults.add(f"{point}:change,to.{name}=77")
        machine.cross(point)
        assert machine.got == [Item(point, BYTES, FIELDS[point] | {name: 77})]
    if POINTS[point].has_bytes:
        machine.faults.clear()
        machine.faults.add(f"{point}:change,at=18,bytes=aabbcc{OPS.get(point, '')}")
        machine.cross(point)
        assert machine.got[-1].data == BYTES[:18] + b"\xaa\xbb\xcc"


@pytest.mark.parametrize("point", having("insert"))
@pytest.mark.parametrize("place", ["before", "after"])
def test_insert_adds_a_changed_copy(machine: Machine, point: str, place: str) -> None:
    change = f"to.{POINTS[point].settable[-1]}=9" if POINTS[point].settable else "bytes=09"
    machine.faults.add(f"{point}:insert,{change},place={place},once")
    machine.cross(point)
    copy, own = machine.got if place == "before" else reversed(machine.got)
    assert own == Item(point, BYTES, FIELDS[point]) and copy != own


@pytest.mark.parametrize("point", having("fail"))
def test_fail_raises_the_error(machine: Machine, point: str) -> None:
    machine.faults.add(f"{point}:fail,errno=ENOMEM")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        machine.cross(point)


@pytest.mark.parametrize("point", POINTS)
def test_a_function_returns_what_is_delivered(machine: Machine, point: str) -> None:
    fault = machine.faults.add(point, lambda item: [item, item.data[:3], item.but(b"z")])
    machine.cross(point)
    assert machine.data() == [BYTES, BYTES[:3], b"z"]
    fault.remove()
    machine.faults.add(point, lambda item: None)
    machine.cross(point)
    assert len(machine.got) == 3


# Selecting


@pytest.mark.parametrize(
    ("selector", "is_hit"),
    [
        ("type=OPEN_RESULT", True),
        ("type=6", True),
        ("type=GPADL_CREATED", False),
        ("relid=1,open_id=7", True),
        ("relid=2", False),
        ("channel=x", True),
        ("channel=y", False),
        ("vp=0,synic_type=1", True),
        ("vp=1", False),
        ("gpadl=1", False),  # no such number in this message
    ],
)
def test_a_rule_selects_by_fields_and_by_numbers_in_the_bytes(machine: Machine, selector: str, is_hit: bool) -> None:
    machine.faults.add(f"message.out:drop,{selector}")
    machine.cross("message.out")
    assert (not machine.got) == is_hit


def packet(kind: int, body: bytes) -> bytes:
    return bytes([6, 0, 2, 0, 4, 0, 0, 0]) + bytes(8) + kind.to_bytes(2, "little") + body


def test_balloon_messages_have_names_on_their_channel_only(machine: Machine) -> None:
    fault = machine.faults.add("packet.out:change,message=UNBALLOON_REQUEST,to.range_count=2000")
    message = packet(8, bytes(22))
    machine.cross("packet.out", message, {"channel": "x", "relid": 1})
    machine.cross("packet.out", message, {"channel": "hv-balloon", "relid": 1})
    assert fault.hits == 1
    assert machine.got[1].data[28:32] == (2000).to_bytes(4, "little")


def test_a_number_that_is_not_there_is_not_changed(machine: Machine) -> None:
    machine.faults.add("message.out:change,to.gpadl=5")
    machine.cross("message.out")
    assert machine.data() == [BYTES]
    assert machine.faults.report() == [
        "fault rule message.out:change,to.gpadl=5 had no effect once: there is no gpadl in these 20 bytes"
    ]


# Counts and states


def test_after_skips_and_count_ends(machine: Machine) -> None:
    fault = machine.faults.add("eom.in:drop,after=1,count=2")
    results = [machine.cross("eom.in") is not None for _ in range(5)]
    assert results == [True, False, False, True, True]
    assert (fault.hits, fault.rules[0].seen) == (2, 3)


def test_states_make_a_sequence(machine: Machine) -> None:
    machine.faults.add("message.out:pass,type=OPEN_RESULT,new=opened")
    machine.faults.add("event.out:drop,state=opened,new=over,once")
    assert machine.cross("event.out") is not None
    machine.cross("message.out")
    assert machine.faults.state == "opened"
    assert machine.cross("event.out") is None
    assert machine.faults.state == "over"
    assert machine.cross("event.out") is not None


def test_a_state_entered_by_an_item_is_for_the_next_one(machine: Machine) -> None:
    machine.faults.add("eom.in:pass,state=start,new=two")
    machine.faults.add("eom.in:drop,state=two")
    assert machine.cross("eom.in") is not None
    assert machine.cross("eom.in") is None


def test_the_first_rule_that_acts_is_the_only_one(machine: Machine) -> None:
    counts = machine.faults.add("eom.in:pass")
    first, second = machine.faults.add("eom.in:duplicate"), machine.faults.add("eom.in:drop")
    machine.cross("eom.in")
    assert (counts.hits, first.hits, second.hits, len(machine.got)) == (1, 1, 0, 2)


# Adding and removing


def test_taps_are_on_only_while_rules_are_there(machine: Machine) -> None:
    assert not machine.taps.eom.on
    with machine.faults.add("eom.in:drop") as fault:
        assert machine.taps.eom.on and not machine.taps.event.on
        machine.cross("eom.in")
        assert fault.hits == 1
    assert not machine.taps.eom.on
    assert machine.cross("eom.in") == 1
    assert machine.faults.hits("eom.in:drop") == 1


def test_a_held_item_keeps_its_tap_on_after_its_rule_is_gone(machine: Machine) -> None:
    with machine.faults.add("eom.in:reorder"):
        machine.cross("eom.in", b"a")
    machine.cross("eom.in", b"b")
    assert machine.data() == [b"b", b"a"]
    assert not machine.taps.eom.on


def test_faults_are_added_with_keywords(machine: Machine) -> None:
    machine.faults.add("torndown-withheld", after=2)
    machine.faults.add("message.out", "change", type="OPEN_RESULT", to={"status": 3}, once=True)
    machine.faults.add("message.in", "change", bytes=b"\xab\xcd", at=4)
    assert [each.rules[0].text() for each in machine.faults] == [
        "message.out:drop,type=GPADL_TORNDOWN,channel=hv-balloon,after=2",
        "message.out:change,type=OPEN_RESULT,to.status=3,count=1",
        "message.in:change,at=4,bytes=abcd",
    ]
    with pytest.raises(ConfigError, match="is no action"):
        machine.faults.add("message.out", "sing")
    with pytest.raises(ConfigError, match="is no key"):
        machine.faults.add("message.out", lambda item: None, at=5)


def test_faults_are_removed_by_number(machine: Machine) -> None:
    fault = machine.faults.add("eom-lost")
    assert machine.faults.info() == [{"id": 1, "rule": "eom-lost", "hits": 0, "seen": 0, "failures": 0}]
    machine.faults.remove(fault.number)
    assert machine.faults.info() == []
    with pytest.raises(NotFoundError, match="x-query-faults"):
        machine.faults.remove(1)
    fault.remove()  # harmless
    machine.faults.clear()


def test_rules_are_bounded(machine: Machine) -> None:
    for _ in range(RULES_LIMIT):
        machine.faults.add("eom-lost")
    with pytest.raises(ConfigError, match="remove some"):
        machine.faults.add("eom-lost")


def test_two_machines_share_nothing(machine: Machine) -> None:
    other = Machine()
    machine.faults.add("eom-lost")
    assert other.cross("eom.in") == 1


# What goes wrong


def test_waiting_items_are_bounded_and_more_pass(machine: Machine) -> None:
    fault = machine.faults.add("eom.in:delay,seconds=1")
    for _ in range(PENDING_LIMIT + 5):
        machine.cross("eom.in")
    assert len(machine.got) == 5
    assert fault.rules[0].failures == 5
    machine.loop.run()  # starts the timers
    for _ in range(10):
        machine.loop.advance(1)
    assert len(machine.got) == PENDING_LIMIT + 5


def test_a_reset_forgets_what_waits_and_keeps_the_rules(machine: Machine) -> None:
    fault = machine.faults.add("event.in:delay,seconds=1")
    machine.faults.add("eom.in:reorder")
    machine.cross("event.in")
    machine.cross("eom.in")
    machine.taps.reset()
    machine.loop.advance(2)
    machine.loop.advance(2)
    assert not machine.got
    machine.cross("event.in")
    machine.loop.advance(2)
    assert len(machine.got) == 1 and fault.hits == 2


@pytest.mark.parametrize(
    "function", [lambda item: 1 / 0, lambda item: 5, lambda item: ["x"], lambda item: item.but().no]
)
def test_a_function_that_fails_is_not_called_again_and_fails_the_test(
    machine: Machine, function: Callable[[Item], object]
) -> None:
    with pytest.raises(FaultError) as failed, machine.faults.add("message.out", function) as fault:
        assert machine.cross("message.out") == 1
        assert machine.cross("message.out") == 2
    assert failed.value.__cause__ is not None
    assert fault.hits == 1 and machine.data() == [BYTES, BYTES]


def test_an_item_of_another_point_is_no_result(machine: Machine) -> None:
    machine.faults.add("message.out", lambda item: Item("packet.out", b"", {}))
    machine.cross("message.out")
    assert machine.data() == [BYTES]
    assert "an item of packet.out" in machine.faults.report()[0]


def layer(machine: Machine, error: Exception) -> None:
    def deliver(item: Item) -> object:
        raise error

    machine.deliver = deliver  # type: ignore[method-assign]


def test_what_a_layer_refuses_is_lost_counted_and_told(machine: Machine) -> None:
    fault = machine.faults.add("event.out:change,to.flag=99999")
    layer(machine, HostError("no event flag 99999"))
    assert machine.cross("event.out") is None
    assert fault.rules[0].failures == 1
    assert machine.faults.report() == [
        "fault rule event.out:change,to.flag=99999 had no effect once: no event flag 99999"
    ]


def test_where_the_host_may_refuse_the_layer_gets_the_refusal(machine: Machine) -> None:
    machine.faults.add("memslot.out:change,to.gpa=1")
    layer(machine, HostError("no"))
    with pytest.raises(HostError):
        machine.cross("memslot.out")


def test_a_guest_s_error_is_the_layer_s_own(machine: Machine) -> None:
    machine.faults.add("packet.in:duplicate")
    layer(machine, GuestProtocolError("bad packet"))
    with pytest.raises(GuestProtocolError):
        machine.cross("packet.in")


@pytest.mark.parametrize("error", [HostError("late"), GuestProtocolError("late"), ValueError("released")])
def test_what_fails_late_stops_nothing(machine: Machine, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contain, "strict", False)
    machine.faults.add("event.in:delay,seconds=1")
    layer(machine, error)
    machine.cross("event.in")
    machine.loop.advance(2)
    assert "had no effect once" in machine.faults.report()[0]


def test_an_error_of_ours_that_a_rule_triggers_is_contained(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contain, "strict", False)
    machine.faults.add("packet.in:duplicate")
    layer(machine, ZeroDivisionError())
    assert machine.cross("packet.in") is None
    monkeypatch.setattr(contain, "strict", True)
    with pytest.raises(ZeroDivisionError):
        machine.cross("packet.in")


# What is told


def test_each_rule_that_was_never_hit_is_told_with_the_reason(machine: Machine) -> None:
    machine.faults.add("eom-lost")
    machine.faults.add("message.out:drop,type=RESCIND")
    machine.faults.add("message.out:drop,after=10")
    machine.faults.add("message.out:drop,state=never")
    machine.faults.add("event.in:reorder,others=5")
    machine.cross("message.out")
    machine.cross("event.in")
    never = pytest.warns(FaultNeverHit, match=r"interrupt.out:drop was never hit: nothing crossed interrupt.out")
    with never, machine.faults.add("interrupt.out:drop"):
        pass
    assert machine.faults.report() == [
        "fault rule interrupt.out:drop was never hit: nothing crossed interrupt.out",
        "fault rule eom.in:drop of eom-lost was never hit: nothing crossed eom.in",
        "fault rule message.out:drop,type=RESCIND was never hit: "
        "it selected none of the 1 items that crossed message.out",
        "fault rule message.out:drop,after=10 was never hit: it selected 1 items, after=10 skips them",
        "fault rule message.out:drop,state=never was never hit: the state is start, not never",
        "fault rule event.in:reorder,others=5 still holds an item back: no 5 more have crossed",
    ]


def test_each_hit_is_traced(machine: Machine) -> None:
    lines: list[str] = []

    def keep(record: trace.Record) -> None:
        lines.append(record.text())

    trace.subscribe("fault.*", keep)
    try:
        fault = machine.faults.add("event.out:delay,seconds=1,new=late")
        machine.cross("event.out", b"")
        machine.loop.advance(2)
        fault.remove()
    finally:
        trace.unsubscribe(keep)
    assert lines == [
        "fault.added #1 event.out:delay,seconds=1,new=late",
        "fault.hit #1 event.out delay: channel=x relid=3 vp=0 sint=2 flag=3",
        "fault.state start -> late",
        "fault.delivered_late #1 event.out",
        "fault.removed #1 after 1 hits",
    ]


def test_handlers_of_others_see_what_comes_out_of_the_rules(machine: Machine) -> None:
    seen: list[bytes] = []

    def watch(item: Item, deliver: Callable[[Item], Any]) -> Any:
        seen.append(item.data)
        return deliver(item)

    machine.faults.add("message.out:truncate,length=4")
    machine.taps.message.attach(watch)
    machine.cross("message.out")
    assert seen == machine.data() == [BYTES[:4]]
    machine.taps.message.detach(watch)
    machine.taps.message.detach(watch)
    machine.cross("message.out")
    assert len(seen) == 1
