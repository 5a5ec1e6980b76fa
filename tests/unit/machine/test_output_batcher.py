"""Output gathered for the loop: at once when it is little, in batches when it is much, never out of order."""

from __future__ import annotations

import pytest

from pyvmm.machine.output_batcher import DIRECT_FLUSHES, LIMIT, STREAM_BYTES, OutputBatcher
from tests.support.fake_clock import FakeLoop


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def test_what_is_added_comes_at_the_loops_next_turn_and_as_one(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    batcher.add(b"hello ")
    batcher.add(b"world")
    assert got == []
    loop.run()
    assert got == [b"hello world"]
    loop.advance(1)
    batcher.add(b"!")
    loop.run()
    assert got[1:] == [b"!"], "after a pause at once again"


def test_a_stream_wakes_the_loop_once_a_period(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    for number in range(100):
        batcher.add(bytes([number]))
        loop.advance(0.001)
    loop.advance(0.02)
    assert b"".join(got) == bytes(range(100))
    assert 5 * (1 + DIRECT_FLUSHES) <= len(got) <= 7 * (1 + DIRECT_FLUSHES)
    assert loop.next_due() is not None
    loop.advance(0.02)
    assert loop.next_due() is None, "no flush is scheduled without output"


def test_in_a_stream_a_few_batches_go_straight_on_and_the_rest_at_the_tick(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    batcher.add(b"a" * STREAM_BYTES)
    loop.run()
    for number in range(DIRECT_FLUSHES):
        batcher.add(bytes([number]))
    assert got == [b"a" * STREAM_BYTES, *(bytes([number]) for number in range(DIRECT_FLUSHES))]
    batcher.add(b"b" * STREAM_BYTES)
    batcher.add(b"b")
    loop.advance(1)
    assert loop.next_due() is None
    assert len(got) == 1 + DIRECT_FLUSHES
    batcher.tick()
    assert got[1 + DIRECT_FLUSHES :] == [b"b" * STREAM_BYTES + b"b"]
    batcher.tick()
    batcher.add(b"c")
    assert len(got) == 2 + DIRECT_FLUSHES, "the second tick found nothing, so the loop is told"
    loop.run()
    assert got[-1] == b"c"


def test_a_tick_is_nothing_to_who_types(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    batcher.tick()
    keys = [bytes([key]) for key in range(2 + DIRECT_FLUSHES)]
    batcher.add(keys[0])
    loop.run()
    for key in keys[1:]:
        batcher.add(key)
    batcher.tick()
    assert got == keys[:-1]
    loop.advance(0.03)
    assert got == keys


def test_without_a_period_each_turn_hands_on(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop)
    for number in range(3):
        batcher.add(bytes([number]))
        loop.run()
    assert got == [b"\0", b"\1", b"\2"]
    assert loop.next_due() is None


def test_a_busy_loop_does_not_let_the_batch_grow(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    batcher.add(b"a" * (LIMIT - 1))
    assert got == []
    batcher.add(b"b")
    assert got == [b"a" * (LIMIT - 1) + b"b"]
    batcher.add(b"c")
    loop.run()
    assert got[1:] == [b"c"]


def test_the_end_does_not_wait_for_the_loop(loop: FakeLoop) -> None:
    got: list[bytes] = []
    batcher = OutputBatcher(got.append, loop, period=0.02)
    batcher.add(b"last words")
    batcher.flush()
    batcher.flush()
    assert got == [b"last words"]
    loop.advance(1)
    assert got == [b"last words"]
