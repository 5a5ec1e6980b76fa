"""Bytes for the loop: in order, a piece a turn, and the guest waits while too many wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pyvmm.inbox import LIMIT, PIECE, Inbox
from pyvmm.loop import Loop

SECONDS = 10.0  # until a test gives up


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_what_is_added_is_taken_in_order_a_piece_a_turn(loop: Loop) -> None:
    got: list[bytes] = []
    inbox = Inbox(got.append, loop)
    data = bytes(n % 251 for n in range(3 * PIECE + 5))
    for at in range(0, len(data), 1000):
        inbox.add(data[at : at + 1000])
    for _ in range(4):
        loop.step(0)
    assert [len(each) for each in got] == [PIECE] * 3 + [5]
    assert b"".join(got) == data


def test_a_vcpu_holds_while_it_is_full(loop: Loop) -> None:
    got: list[bytes] = []
    inbox = Inbox(got.append, loop)
    inbox.add(bytes(LIMIT - 1))
    assert not inbox.full
    inbox.add(bytes(1))
    assert inbox.full
    passed = threading.Event()
    vcpu = threading.Thread(target=lambda: (inbox.hold(lambda: False), passed.set()))
    vcpu.start()
    assert not passed.wait(0.15)
    loop.step(0)
    assert passed.wait(SECONDS)
    vcpu.join()


def test_a_vcpu_that_has_to_stop_does_not_hold(loop: Loop) -> None:
    inbox = Inbox(lambda data: None, loop)
    inbox.add(bytes(LIMIT))
    leaving = threading.Event()
    vcpu = threading.Thread(target=inbox.hold, args=(leaving.is_set,))
    vcpu.start()
    leaving.set()
    vcpu.join(SECONDS)
    assert not vcpu.is_alive()
    assert inbox.full


def test_flush_takes_all_at_once(loop: Loop) -> None:
    got: list[bytes] = []
    inbox = Inbox(got.append, loop)
    inbox.add(bytes(PIECE + 1))
    inbox.flush()
    assert sum(map(len, got)) == PIECE + 1
    loop.step(0)
    assert sum(map(len, got)) == PIECE + 1
