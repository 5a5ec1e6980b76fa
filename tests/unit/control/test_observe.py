from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import trace
from pyvmm.client.qmp import Client, Refused
from pyvmm.control import observe
from pyvmm.control.observe import BATCH, QUEUE_LIMIT, TraceStream
from pyvmm.loop import Loop
from pyvmm.trace import Record, event

happened = event("observe.happened", "number {number}")
other = event("observe.other", "{text}")


class Ticker:
    """A loop that turns when told."""

    def __init__(self) -> None:
        self.turn: Any = None
        self.cancelled = False

    def every(self, period: float, callback: Any) -> Ticker:
        self.turn = callback
        return self

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def client(loop: Loop, path: Path) -> Iterator[Client]:
    with Client(path) as client:
        yield client


def batch(client: Client, timeout: float = 10.0) -> dict[str, Any]:
    return client.wait_event({"X_TRACE"}, timeout)[1]


def test_a_subscriber_gets_events_as_they_happen(client: Client) -> None:
    reply = client.execute("x-trace-subscribe", {"pattern": "observe.*"})
    assert reply["events"] == {"observe.happened": "number {number}", "observe.other": "{text}"}
    assert reply["now"] <= time.monotonic()
    happened(1)
    other("two")
    found = batch(client)["events"]
    while len(found) < 2:
        found += batch(client)["events"]
    assert [(each["event"], each.get("number"), each.get("text")) for each in found] == [
        ("observe.happened", 1, None),
        ("observe.other", None, "two"),
    ]


def test_only_what_is_wanted_comes(client: Client) -> None:
    client.execute("x-trace-subscribe", {"pattern": "observe.*,!observe.other"})
    other("no")
    happened(1)
    assert [each["event"] for each in batch(client)["events"]] == ["observe.happened"]


def test_only_the_client_that_asked_gets_events(client: Client, path: Path) -> None:
    with Client(path) as bystander:
        client.execute("x-trace-subscribe", {"pattern": "observe.*"})
        happened(1)
        batch(client)
        bystander.execute("query-status")
        assert not bystander.events


def test_following_everything_begins_after_its_own_reply(client: Client) -> None:
    for _ in range(2):  # the second takes the first one's place
        client.execute("x-trace-subscribe", {"pattern": "*"})
    happened(1)
    assert batch(client)["events"][0]["event"] == "observe.happened"


def test_following_everything_does_not_follow_itself(client: Client) -> None:
    client.execute("x-trace-subscribe", {"pattern": "*"})
    happened(1)
    names = [each["event"] for each in batch(client)["events"]]
    while "observe.happened" not in names:
        names += [each["event"] for each in batch(client)["events"]]
    client.execute("query-status")
    time_limit = time.monotonic() + 0.3
    later: list[str] = []
    while time.monotonic() < time_limit:
        try:
            later += [each["event"] for each in batch(client, 0.1)["events"]]
        except Exception:
            break
    assert len(later) < 10


def test_no_events_after_the_client_leaves_or_unsubscribes(loop: Loop, path: Path) -> None:
    with Client(path) as client:
        client.execute("x-trace-subscribe", {"pattern": "observe.happened"})
        assert happened.on
        client.execute("x-trace-unsubscribe")
        assert not happened.on
        client.execute("x-trace-subscribe", {"pattern": "observe.happened"})
    deadline = time.monotonic() + 10
    while happened.on and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not happened.on


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("nothing.here", "no trace event"), ("*,!*", "leaves no"), ("x" * 2000, "at most"), ("", "leaves no")],
)
def test_a_pattern_without_events_is_refused(client: Client, pattern: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        client.execute("x-trace-subscribe", {"pattern": pattern})


def stream(ready: bool = True) -> tuple[TraceStream, Ticker, list[dict[str, Any]]]:
    ticker = Ticker()
    sent: list[dict[str, Any]] = []
    made = TraceStream(
        ticker, lambda: ready, lambda data: sent.append(json.loads(data)), pattern="observe.none,observe.happened"
    )
    return made, ticker, sent


def test_batches_are_bounded() -> None:
    made, ticker, sent = stream()
    for number in range(BATCH + 10):
        made(Record(1.0, happened, "vcpu0", (number,)))
    ticker.turn()
    assert len(sent[0]["data"]["events"]) == BATCH
    ticker.turn()
    assert len(sent[1]["data"]["events"]) == 10
    ticker.turn()
    assert len(sent) == 2
    made.close()
    assert ticker.cancelled


def test_a_slow_reader_loses_events_and_gets_their_number() -> None:
    made, ticker, sent = stream(ready=False)
    for number in range(QUEUE_LIMIT + 5):
        made(Record(1.0, happened, "vcpu0", (number,)))
    ticker.turn()
    assert not sent
    made._ready = lambda: True
    ticker.turn()
    ticker.turn()
    assert [each["data"]["dropped"] for each in sent] == [5, 0]
    made.close()


def test_a_client_that_never_reads_delays_no_other(loop: Loop, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "QUEUE_LIMIT", 500)
    with Client(path) as stuck, Client(path) as other_client:
        stuck.execute("x-trace-subscribe", {"pattern": "observe.other"})
        for _ in range(3000):
            other("x" * 2000)
        assert other_client.execute("query-status")["running"]
        other("last")
        deadline = time.monotonic() + 10
        dropped = 0
        while not dropped and time.monotonic() < deadline:
            dropped += batch(stuck)["dropped"]
        assert dropped > 0


def test_events_are_listed_with_their_fields(client: Client) -> None:
    found = {each["name"]: each for each in client.execute("x-query-trace-events")}
    assert found["observe.happened"] == {"name": "observe.happened", "fields": ["number"], "on": False}


def test_a_subscription_survives_nothing_but_its_client() -> None:
    before = len(trace._subscriptions)
    made, _, _ = stream()
    made.close()
    assert len(trace._subscriptions) == before


def test_what_waits_is_sent_at_the_end() -> None:
    made, _, sent = stream(ready=False)
    for number in range(BATCH + 10):
        made(Record(1.0, happened, "vcpu0", (number,)))
    made.finish()
    assert sum(len(each["data"]["events"]) for each in sent) == BATCH + 10
    made.close()
