"""Trace events: free when off, in order when on, readable by people and programs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import count

import pytest

from pyvmm import trace
from pyvmm.errors import ConfigError

_number = count()


@pytest.fixture
def name() -> str:
    """A name no other test declared: events live as long as the process."""
    return f"test_trace.event_{next(_number)}"


@pytest.fixture
def tail() -> Iterator[trace.TailSink]:
    sink = trace.TailSink(3)
    yield sink
    trace.unsubscribe(sink)


def test_an_event_is_off_until_it_is_subscribed_to(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name, "{a} {b}")
    assert not made.on
    made(1, 2)
    trace.subscribe(name, tail)
    assert made.on
    made(3, 4)
    assert [r.values for r in tail.records] == [(3, 4)]


def test_a_pattern_reaches_events_declared_later(name: str, tail: trace.TailSink) -> None:
    trace.subscribe(name[:-2] + "*", tail)
    assert trace.event(name).on


def test_unsubscribing_turns_events_off_again(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name)
    trace.subscribe(name, tail)
    trace.unsubscribe(tail)
    assert not made.on


def test_a_sink_with_two_matching_patterns_gets_each_event_once(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name)
    trace.subscribe(name, tail)
    trace.subscribe("test_trace.*", tail)
    made()
    assert len(tail.records) == 1


def test_the_same_name_twice_is_our_bug(name: str) -> None:
    trace.event(name)
    with pytest.raises(AssertionError, match="declared twice"):
        trace.event(name)


def test_the_text_is_formatted_as_declared(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name, "gpa {gpa:#x} of {what}")
    trace.subscribe(name, tail)
    made(4096, "ring")
    assert tail.records[0].text() == f"{name} gpa 0x1000 of ring"
    assert made.fields == ("gpa", "what")


@pytest.mark.parametrize(("reason", "text"), [("full", "5 pages: full"), ("", "5 pages")])
def test_no_colon_leads_to_an_empty_reason(name: str, tail: trace.TailSink, reason: str, text: str) -> None:
    trace.subscribe(name, tail)
    trace.event(name, "{pages} pages: {reason}")(5, reason)
    assert tail.records[0].text() == f"{name} {text}"


def test_the_tail_keeps_the_last_records(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name, "{n}")
    trace.subscribe(name, tail)
    for n in range(5):
        made(n)
    assert [line.split()[-1] for line in tail.lines()] == ["2", "3", "4"]


def test_programs_get_time_event_thread_and_fields(name: str, tail: trace.TailSink) -> None:
    made = trace.event(name, "{size} {what}")
    trace.subscribe(name, tail)
    made(7, "ring")
    record = tail.records[0].as_dict()
    assert record.pop("time") > 0
    assert record == {"event": name, "thread": "MainThread", "size": 7, "what": "ring"}


def test_text_lines_start_with_the_seconds_since_the_sink_was_made(name: str) -> None:
    stream = io.StringIO()
    sink = trace.TextSink(stream)
    made = trace.event(name, "{n}")
    trace.subscribe(name, sink)
    made(1)
    trace.unsubscribe(sink)
    seconds, rest = stream.getvalue().split(" ", 1)
    assert 0 <= float(seconds) < 60
    assert rest == f"{name} 1\r\n"


def test_a_pattern_that_matches_nothing_is_the_user_s_mistake(name: str) -> None:
    trace.event(name)
    assert trace.check_pattern(name) == name
    with pytest.raises(ConfigError, match="no trace event matches 'nothing"):
        trace.check_pattern("nothing.*")


def test_events_are_listed_by_name(name: str) -> None:
    trace.event(name)
    names = [e.name for e in trace.events()]
    assert name in names
    assert names == sorted(names)
