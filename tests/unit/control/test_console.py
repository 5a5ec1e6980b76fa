"""The console's end and what comes, over QMP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.client.qmp import Client, Disconnected, Refused
from pyvmm.control.console import ConsoleStream
from pyvmm.loop import Loop
from pyvmm.tail import Tail
from tests.support.fake_machine import FakeMachine


@pytest.fixture
def client(loop: Loop, path: Path) -> Iterator[Client]:
    with Client(path) as client:
        yield client


def test_the_consoles_tail_comes_from_where_one_was(client: Client, machine: FakeMachine) -> None:
    machine.console = b"hello\r\n"
    assert client.execute("x-console-tail") == {"begin": 0, "end": 7, "text": "hello\r\n"}
    machine.console += b"you"
    assert client.execute("x-console-tail", {"since": 7}) == {"begin": 7, "end": 10, "text": "you"}
    assert client.execute("x-console-tail", {"since": 10}) == {"begin": 10, "end": 10, "text": ""}
    with pytest.raises(Refused):
        client.execute("x-console-tail", {"since": -1})


def test_half_a_character_waits_for_its_other_half(client: Client, machine: FakeMachine) -> None:
    machine.console = "ä".encode()[:1]
    assert client.execute("x-console-tail") == {"begin": 0, "end": 0, "text": ""}
    machine.console = "ä\udcff".encode(errors="surrogateescape")
    assert client.execute("x-console-tail", {"since": 0})["text"] == "ä�"


def test_a_subscriber_gets_output_as_it_comes_and_the_last_words(client: Client, machine: FakeMachine) -> None:
    machine.console = b"before "
    client.execute("x-console-subscribe", {"since": 7})
    machine.console += b"one"
    assert client.wait_event({"X_CONSOLE"}, 10)[1] == {"begin": 7, "end": 10, "text": "one"}
    machine.console += b" more"
    client.execute("quit")
    assert client.wait_event({"X_CONSOLE"}, 10)[1] == {"begin": 10, "end": 15, "text": " more"}


def test_dropped_output_is_reported() -> None:
    tail, sent = Tail(limit=10), []
    stream = ConsoleStream(Loop(), lambda: True, sent.append, since=tail.since, offset=2)
    tail(b"0123456789abcdef")
    stream.finish()
    assert json.loads(sent[0])["data"] == {"begin": 6, "end": 16, "text": "6789abcdef"}
    stream.close()


def test_nothing_comes_after_unsubscribing(client: Client, machine: FakeMachine) -> None:
    client.execute("x-console-subscribe")
    client.execute("x-console-unsubscribe")
    machine.console = b"unheard"
    client.execute("quit")
    with pytest.raises(Disconnected):
        client.wait_event({"X_CONSOLE"}, 10)


def test_a_bad_beginning_is_refused(client: Client) -> None:
    with pytest.raises(Refused, match="since"):
        client.execute("x-console-subscribe", {"since": -1})
