from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path

import pytest

from pyvmm.machine.devices import load_devices
from pyvmm.trace import Record, event
from pyvmm.trace.chrome import ChromeEncoder
from pyvmm.trace.formats import Encoder, JsonEncoder, TextEncoder, encoder, format_of
from pyvmm.trace.tracks import Track, track_of

load_devices()  # tracks and spans are declared beside their events

said = event("formats.said", "{who} said {what}, 100% sure")
quiet = event("formats.quiet")


class Kind(IntEnum):
    BIG = 7


def record(*values: object, time: float = 5.25, thread: str = "vcpu0") -> Record:
    return Record(time, said, thread, values)


def test_a_json_line_holds_time_event_thread_and_fields() -> None:
    line = JsonEncoder().encode(record("the guest", 3))
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "time": 5.25,
        "event": "formats.said",
        "thread": "vcpu0",
        "who": "the guest",
        "what": 3,
    }


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (True, True),
        (None, None),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (Kind.BIG, 7),
        ('"\n\x00é', '"\n\x00é'),
        ({"actual": 1, "kind": Kind.BIG}, {"actual": 1, "kind": 7}),
        ((1, 2), [1, 2]),
        (Path("/x"), "/x"),
        (b"\xff", "b'\\xff'"),
    ],
)
def test_values_survive_json(value: object, read: object) -> None:
    assert json.loads(JsonEncoder().encode(record(value, 0)))["who"] == read


def test_too_few_values_are_still_a_line() -> None:
    assert json.loads(JsonEncoder().encode(record("one")))["who"] == "one"


def test_text_counts_seconds_from_the_first_record() -> None:
    text = TextEncoder()
    assert text.encode(record("a", 1)) == "0.000000 formats.said a said 1, 100% sure\n"
    assert text.encode(Record(6.0, quiet, "x", ())) == "0.750000 formats.quiet\n"


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.txt", "text"), ("a.LOG", "text"), ("a.jsonl", "json"), ("a.json", "chrome"), ("a", "json")],
)
def test_the_ending_says_the_format(name: str, format: str) -> None:
    assert format_of(Path(name)) == format


@pytest.mark.parametrize("format", ["text", "json", "chrome"])
def test_every_format_has_an_encoder(format: str) -> None:
    made: Encoder = encoder(format)
    assert "said" in made.head() + made.encode(record("a", 1)) + made.tail()


@pytest.mark.parametrize(
    ("name", "thread", "fields", "track"),
    [
        ("machine.vcpu_exit", "vcpu1", {}, Track("threads", "vcpu1")),
        ("machine.state", "MainThread", {}, Track("threads", "loop")),
        ("vmbus_open_channel", "MainThread", {"chan_id": 3}, Track("channels", "channel #3")),
        ("hv_balloon_state_change", "MainThread", {}, Track("devices", "hv-balloon")),
        ("balloon.finished", "MainThread", {}, Track("devices", "hv-balloon")),
        ("ic.requested", "MainThread", {"name": "heartbeat"}, Track("devices", "heartbeat")),
        ("serial.irq", "vcpu0", {"name": "ttyS0"}, Track("devices", "ttyS0")),
    ],
)
def test_an_event_belongs_to_a_channel_a_device_or_its_thread(
    name: str, thread: str, fields: dict[str, object], track: Track
) -> None:
    assert track_of(name, thread, fields) == track


def chrome(*events: tuple[float, str, str, dict[str, object]]) -> list[dict[str, object]]:
    encoder = ChromeEncoder()
    text = encoder.head() + "".join(encoder.event(*each) for each in events) + encoder.tail()
    found: list[dict[str, object]] = json.loads(text)
    return found


def test_chrome_names_a_track_for_each_thread_channel_and_device() -> None:
    found = chrome(
        (1.0, "machine.vcpu_exit", "vcpu0", {"vcpu": 0}),
        (1.1, "vmbus_open_channel", "MainThread", {"chan_id": 1}),
        (1.2, "ic.requested", "MainThread", {"name": "heartbeat"}),
    )
    names = {each["args"]["name"] for each in found if each["name"] == "thread_name"}  # type: ignore[index]
    assert names == {"vcpu0", "channel #1", "heartbeat"}
    instants = [each for each in found if each["ph"] == "i"]
    assert len({(each["pid"], each["tid"]) for each in instants}) == 3
    assert [each["ts"] for each in instants] == [0, 100000.0, 200000.0]


def test_chrome_turns_states_into_spans_that_all_end() -> None:
    found = chrome(
        (1.0, "hv_balloon_state_change", "MainThread", {"tostr": "S_IDLE"}),
        (3.0, "hv_balloon_state_change", "MainThread", {"tostr": "S_BALLOON_POSTING"}),
        (4.0, "agent.ready", "MainThread", {}),
    )
    spans = [(each["ph"], each["name"]) for each in found if each["ph"] in ("B", "E")]
    assert spans == [("B", "S_IDLE"), ("E", "S_IDLE"), ("B", "S_BALLOON_POSTING"), ("E", "S_BALLOON_POSTING")]


def test_chrome_spans_a_request_up_to_its_last_answer() -> None:
    found = chrome(
        (1.0, "hv_balloon_outgoing_balloon", "MainThread", {"count": 8}),
        (2.0, "hv_balloon_incoming_balloon", "MainThread", {"more_pages": 1}),
        (3.0, "hv_balloon_incoming_balloon", "MainThread", {"more_pages": 0}),
    )
    begin, end = [each for each in found if each["ph"] in "be"]
    assert (begin["ts"], end["ts"], begin["id"]) == (0, 2000000.0, end["id"])


def test_chrome_draws_memory_as_counters_in_mib() -> None:
    found = chrome((1.0, "machine.memory", "MainThread", {"actual": 256 << 20, "target": None}))
    assert [each["args"] for each in found if each["ph"] == "C"] == [{"actual": 256.0}]


def test_an_empty_chrome_trace_is_an_array() -> None:
    assert chrome() == []
