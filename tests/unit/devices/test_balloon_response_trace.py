"""The trace of a balloon response, range by range as QEMU's log has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import trace
from pyvmm.analysis.diff import compare
from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import read_trace
from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.errors import HostError
from tests.unit.devices.test_balloon_hot_add import FakeWindow

OUR = PageRange(0x1000, 0x800)
BOOT = [PageRange(0, OUR.start), PageRange(OUR.end, 0x1000)]  # RAM that touches the hot-added range on both sides
QEMU_LOG = Path(__file__).parent / "captures" / "qemu-response.log"


@pytest.fixture
def tail() -> Iterator[trace.TailSink]:
    sink = trace.TailSink(1000)
    trace.subscribe("hv_balloon_remove_response*", sink)
    yield sink
    trace.unsubscribe(sink)


def ledger(given: int = OUR.pages) -> Ledger:
    """The record of a guest that was given so many pages of the window."""
    made = Ledger(BOOT, lambda gpa, size: None, FakeWindow(OUR.start, OUR.end, OUR.pages))
    if given:
        assert made.hot_range is not None
        grant = made.hot_range.grant(given, 0x100, OUR.pages, whole_blocks=False)
        assert grant is not None
        made.hot_range.accepted(grant, given, 0x100)
    return made


def short(tail: trace.TailSink) -> list[tuple[object, ...]]:
    """Events by the end of their names, with their values; those traced before are dropped."""
    found = [(r.event.name.removeprefix("hv_balloon_remove_response"), *r.values) for r in tail.records]
    tail.records.clear()
    return found


def test_a_range_across_all_three_parts_reads_as_in_qemus_log(tail: trace.TailSink) -> None:
    record = ledger()
    assert record.record_released([(0xF00, 0x100), (0x1000, 0x800), (0x1800, 0x40)]).refused == 0
    lines = [record.text() for record in tail.records]
    assert lines == [line.partition(":")[2] for line in QEMU_LOG.read_text().splitlines()[:4]]


def test_trace_diff_finds_no_difference_to_qemus_log(tail: trace.TailSink) -> None:
    record = ledger()
    record.record_released([(0xF00, 0x100), (0x1000, 0x800), (0x1800, 0x40)])
    record.record_released([(0x10, 0x20)])
    records = [(r.time, r.event.name, dict(zip(r.event.fields, r.values, strict=True))) for r in tail.records]
    ours = [Entry(time, name, "", fields) for time, name, fields in records]
    found = compare(ours, read_trace(QEMU_LOG).entries, patterns=["hv_balloon_*"])
    assert found.same
    assert len(found.steps) == 6
    assert not found.unknown_to_a
    assert not found.unknown_to_b


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        (PageRange(0xFFF, 1), [("_remainder", 1, 0xFFF, 1)]),
        (PageRange(0x1800, 2), [("_remainder", 2, 0x1800, 1)]),
        (PageRange(0x1000, 2), [("_common", 2, 0x1000, 2, 0x1000, 0x800, 0x1000, 2, 1)]),
        (
            PageRange(0xFFF, 2),
            [("_hole", 1, 0xFFF, 2, 0xFFF, 0x1000, 1), ("_common", 1, 0x1000, 2, 0xFFF, 0x800, 0x1000, 1, 1)],
        ),
        (
            PageRange(0x17FF, 2),
            [("_common", 1, 0x17FF, 2, 0x17FF, 0x800, 0x1000, 1, 1), ("_remainder", 1, 0x1800, 1)],
        ),
    ],
)
def test_only_the_parts_that_a_range_has_are_traced(
    tail: trace.TailSink, named: PageRange, parts: list[tuple[object, ...]]
) -> None:
    ledger().record_released([named])
    assert short(tail) == [("", named.pages, named.start, 1), *parts]


def test_before_the_first_hot_add_there_is_no_range_to_touch(tail: trace.TailSink) -> None:
    ledger(given=0).record_released([(0xF00, 0x200)])
    assert short(tail) == [
        ("", 0x100, 0xF00, 1),
        ("_remainder", 0x100, 0xF00, 1),
        ("", 0x100, 0x1000, 0),  # not RAM
        ("_remainder", 0x100, 0x1000, 0),
    ]


def test_what_was_out_before_is_not_counted_as_removed(tail: trace.TailSink) -> None:
    record = ledger()
    record.record_released([(0x1000, 0x10)])
    short(tail)
    record.record_released([(0x1008, 0x10)])
    assert short(tail)[1] == ("_common", 0x10, 0x1008, 0x10, 0x1008, 0x800, 0x1000, 8, 1)


def test_what_the_host_could_not_discard_is_a_range_of_its_own(tail: trace.TailSink) -> None:
    record = ledger()

    def refuse(gpa: int, size: int) -> None:
        if gpa >> 12 == 0x100:
            raise HostError("madvise: Invalid argument")

    record.discard = refuse
    record.record_released([(0x100, 8), (0x200, 8)])
    assert [row for row in short(tail) if row[0] == ""] == [("", 8, 0x100, 0), ("", 8, 0x200, 1)]
