from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import Trace, read_trace
from pyvmm.analysis.report.charts import NOTE_WIDTH
from pyvmm.analysis.report.latency import latencies
from pyvmm.analysis.report.page import page
from pyvmm.analysis.report.summary import TraceSummary, summarise
from pyvmm.analysis.report.svg import nice_ticks
from pyvmm.analysis.report.tables import write_tables
from pyvmm.launch.trace_events import load_events
from pyvmm.trace.sequences import Message, Note

CAPTURES = Path(__file__).parent / "captures"
MIB = 1 << 20
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def trace() -> Trace:
    load_events()
    return read_trace(CAPTURES / "resize.jsonl")


@pytest.fixture(scope="module")
def summary(trace: Trace) -> TraceSummary:
    return summarise(trace)


def made_of(*entries: tuple[float, str, dict[str, object]]) -> Trace:
    return Trace(
        Path("made.jsonl"), [Entry(time, name, "MainThread", dict(fields)) for time, name, fields in entries]
    )


class Checker(HTMLParser):
    """Every element is closed in order; notes what the page says and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return checker


def test_the_handshake_is_shown_message_by_message(summary: TraceSummary) -> None:
    (handshake,) = summary.handshakes
    labels = [message.label for message in handshake.messages]
    assert labels[:3] == ["INITIATE_CONTACT", "VERSION_RESPONSE", "REQUEST_OFFERS"]
    assert labels.count("OFFER") == labels.count("OPEN") == labels.count("OPEN_RESULT") == 4
    first = handshake.messages[0]
    assert (first.to_host, first.detail) == (True, "version 5.3, messages to vp 0")
    assert [m.detail for m in handshake.messages if m.label == "OPEN"][-1].startswith("#1 hv-balloon")


def test_the_negotiation_has_its_answers(summary: TraceSummary) -> None:
    labels = [(m.label, m.to_host) for m in summary.transactions[0].messages]
    assert labels == [
        ("VERSION_REQUEST", True),
        ("VERSION_RESPONSE", False),
        ("CAPABILITIES", True),
        ("CAPABILITIES_RESPONSE", False),
        ("INFO", False),
    ]


def test_each_resize_is_a_conversation(summary: TraceSummary) -> None:
    shrink, grow = summary.transactions[1:3]
    assert (shrink.title, shrink.result) == ("512 MiB to 300 MiB", "reached")
    assert [m.label for m in shrink.messages] == ["BALLOON_REQUEST", "BALLOON_RESPONSE"] * 2
    assert [type(step) for step in (shrink.steps[0], shrink.steps[-1])] == [Note, Note]
    assert [m.label for m in grow.messages] == ["UNBALLOON_REQUEST", "UNBALLOON_RESPONSE"]


def test_memory_is_shown_in_bytes(summary: TraceSummary) -> None:
    actual = [point.actual for point in summary.memory if point.actual is not None]
    assert actual[0] == 512 * MIB
    assert 300 * MIB in actual


def test_memory_figures_of_the_machine_are_taken() -> None:
    found = summarise(made_of((1.0, "machine.memory", {"actual": 5, "target": None, "resident": 3}))).memory
    assert [(p.actual, p.target, p.resident) for p in found] == [(5, None, 3)]


def test_exits_are_counted_from_sums_or_one_by_one(summary: TraceSummary) -> None:
    assert set(summary.exits) == {"vcpu0", "vcpu1"}
    single = ("machine.vcpu_exit", {"vcpu": 0, "exit": "IoOut", "detail": {"port": 1}})
    sums = ("machine.exit_count", {"vcpu": 0, "exit": "IoOut", "count": 40})
    assert summarise(made_of((1.0, *single), (2.0, *single))).exits_by_kind == {"IoOut": 2}
    assert summarise(made_of((1.0, *single), (2.0, *sums))).exits_by_kind == {"IoOut": 40}


def test_latencies_pair_events_by_their_ids() -> None:
    trace = made_of(
        (1.0, "vmbus_open_channel", {"chan_id": 1}),
        (2.0, "vmbus_open_channel", {"chan_id": 2}),
        (2.5, "vmbus_channel_open", {"chan_id": 2}),
        (4.0, "vmbus_channel_open", {"chan_id": 1}),
        (5.0, "vmbus_open_channel", {"chan_id": 1}),
    )
    (found,) = latencies(trace)
    assert (found.title, found.seconds, found.unanswered) == ("open to open result", [0.5, 3.0], 1)


def test_a_balloon_request_is_answered_by_the_last_response() -> None:
    trace = made_of(
        (1.0, "hv_balloon_outgoing_balloon", {}),
        (2.0, "hv_balloon_incoming_balloon", {"more_pages": 1}),
        (4.0, "hv_balloon_incoming_balloon", {"more_pages": 0}),
    )
    (found,) = latencies(trace)
    assert found.seconds == [3.0]


@pytest.mark.parametrize(
    ("kind", "given_up"),
    [
        ("unballoon", ("balloon.timed_out", {"state": "UnballoonWaiting"})),
        ("hot_add", ("balloon.timed_out", {"state": "HotAddWaiting"})),
        ("hot_add", ("hv_balloon_state_change", {"tostr": "S_VERSION"})),
    ],
)
def test_an_answer_is_not_a_request_s_that_was_given_up(kind: str, given_up: tuple[str, dict[str, object]]) -> None:
    request, response = f"hv_balloon_outgoing_{kind}", f"hv_balloon_incoming_{kind}"
    trace = made_of(
        (1.0, request, {"trans_id": 7}),
        (2.0, "hv_balloon_state_change", {"tostr": "S_IDLE"}),
        (31.0, *given_up),
        (40.0, request, {"trans_id": 8}),
        (42.0, response, {"trans_id": 3}),
        (50.0, request, {"trans_id": 9}),
    )
    (found,) = latencies(trace)
    assert (found.samples, found.unanswered) == ([(39.0, 2.0)], 2)


def test_an_unballoon_request_of_many_messages_has_one_answer() -> None:
    trace = made_of(
        (1.0, "hv_balloon_outgoing_unballoon", {"rempages": 512}),
        (1.5, "hv_balloon_outgoing_unballoon", {"rempages": 0}),
        (2.0, "hv_balloon_incoming_unballoon", {}),
        (5.0, "hv_balloon_outgoing_unballoon", {"rempages": 0}),
        (5.5, "hv_balloon_incoming_unballoon", {}),
    )
    (found,) = latencies(trace)
    assert (found.seconds, found.unanswered) == ([0.5, 1.0], 0)


REPLACED = (
    (1.0, "balloon.target_set", {"target": 76800, "current": 131072, "reason": ""}),
    (2.0, "balloon.target_set", {"target": 102400, "current": 131072, "reason": ""}),
    (2.5, "hv_balloon_outgoing_balloon", {"trans_id": 1, "count": 28672, "rempages": 0}),
    (4.0, "balloon.finished", {"target": 102400, "current": 102400, "reason": ""}),
    (9.0, "balloon.target_set", {"target": 131072, "current": 102400, "reason": ""}),
    (9.5, "balloon.finished", {"target": 131072, "current": 131072, "reason": ""}),
)


def test_a_replaced_target_waits_for_no_answer(tmp_path: Path) -> None:
    trace = made_of(*REPLACED)
    (found,) = latencies(trace)
    assert (found.samples, found.replaced, found.unanswered) == ([(1.0, 2.0), (8.0, 0.5)], [(0.0, 1.0)], 0)
    write_tables(tmp_path, summarise(trace), [found])
    with open(tmp_path / "latencies.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seconds"], row["end"]) for row in rows] == [
        ("2.0", "answered"),
        ("0.5", "answered"),
        ("1.0", "replaced"),
    ]


def test_a_replaced_resize_says_so() -> None:
    first, second, third = summarise(made_of(*REPLACED)).transactions
    assert (first.result, second.result, third.result) == ("replaced", "reached", "reached")
    assert first.steps[-1] == Note(1.0, "replaced by target 400 MiB")
    text = " ".join(check(page(summarise(made_of(*REPLACED)), [], Path("t"))).text)
    assert "1 message," in text
    assert "0 messages, replaced" in text


def test_a_guest_asked_again_after_its_resize_has_ended_says_so() -> None:
    trace = made_of(
        (1.0, "balloon.target_set", {"target": 76800, "current": 131072, "reason": ""}),
        (3.0, "balloon.finished", {"target": 76800, "current": 77056, "reason": "its floor"}),
        (3.0, "balloon.asks_again", {"pages": 256, "tries": 3, "seconds": 2.0}),
        (5.0, "hv_balloon_outgoing_balloon", {"trans_id": 1, "count": 256, "rempages": 256}),
        (5.5, "balloon.finished", {"target": 76800, "current": 76800, "reason": ""}),
    )
    resize, again = summarise(trace).transactions
    assert (resize.result, again.result) == ("its floor", "reached")
    assert again.steps[0] == Note(2.0, "1 MiB short: the guest is asked again in 2.0 s")


def test_a_long_note_is_shown_in_two_lines_and_whole_under_the_pointer() -> None:
    reason = "the guest said it has " + "no more memory to give " * 8 + "at all"
    trace = made_of((1.0, "balloon.target_set", {"target": 256, "current": 512, "reason": reason}))
    html = page(summarise(trace), [], Path("t"))
    assert f"<title>target 1 MiB: {reason}</title>" in html
    notes = re.findall(r'<text [^>]*class="note"[^>]*>([^<]*)<', html)
    assert len(notes) == 2
    assert all(len(note) <= NOTE_WIDTH for note in notes)
    assert notes[1].endswith("…")


def test_the_page_is_whole_and_fetches_nothing(trace: Trace, summary: TraceSummary) -> None:
    html = page(summary, latencies(trace), Path("resize.jsonl"))
    found = check(html)
    assert not found.fetched
    assert "@import" not in html
    assert not re.findall(r"url\(|https?://", html)
    assert "script" not in found.counts
    assert found.counts["svg"] == len(summary.handshakes) + len(summary.transactions) + 3
    text = " ".join(found.text)
    for words in ("VMBus handshake", "INITIATE_CONTACT", "512 MiB to 300 MiB", "balloon request to last response"):
        assert words in text


def test_a_trace_of_nothing_in_particular_is_a_page_too() -> None:
    trace = made_of((1.0, "x.y", {}))
    found = check(page(summarise(trace), latencies(trace), Path("t.jsonl")))
    assert found.counts.get("svg", 0) == 0
    assert "record" in " ".join(found.text)


def test_what_a_guest_could_say_is_escaped() -> None:
    evil = "</text><script>alert(1)</script>"
    trace = made_of(
        (1.0, "trace.started", {"machine": evil, "wall_clock": evil}),
        (1.5, "vmbus_process_incoming_message", {"message_type": 14}),
        (2.0, "vmbus.message_refused", {"reason": evil}),
        (2.5, "machine.vcpu_exit", {"vcpu": 0, "exit": evil}),
        (3.0, evil, {}),
    )
    assert "script" not in check(page(summarise(trace), latencies(trace), Path(evil))).counts


@pytest.mark.parametrize("value", ["x", None, -1, [], 1 << 70])
def test_fields_of_the_wrong_kind_do_no_harm(trace: Trace, value: object) -> None:
    broken = [Entry(e.time, e.name, e.thread, dict.fromkeys(e.fields, value)) for e in trace.entries]
    found = Trace(Path("t"), broken)
    check(page(summarise(found), latencies(found), Path("t")))


def test_the_same_data_comes_as_csv(trace: Trace, summary: TraceSummary, tmp_path: Path) -> None:
    written = write_tables(tmp_path / "data", summary, latencies(trace))
    assert [path.name for path in written] == [
        "memory.csv",
        "messages.csv",
        "latencies.csv",
        "exits.csv",
        "counts.csv",
    ]
    with open(tmp_path / "data" / "messages.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["what"] == "INITIATE_CONTACT"
    assert sum(row["conversation"] == "vmbus" for row in rows) == len(summary.handshakes[0].steps)


def test_a_message_says_when_it_was_posted(summary: TraceSummary) -> None:
    first = summary.handshakes[0].steps[0]
    assert isinstance(first, Message)
    assert first.begin is not None
    assert first.begin < first.time


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 512), (15.2, 88), (0, 0.03), (5, 5)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks
    assert all(low <= tick <= high * 1.3 for tick in ticks)
    assert len(ticks) <= 11
