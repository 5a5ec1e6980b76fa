"""An output whose reader is slow, gone or full: `write` never waits, and what is lost is counted."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator

import pytest

from pyvmm.output import HIGH, LIMIT, LOW, Output


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def read(fd: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        found += os.read(fd, count - len(found))
    return bytes(found)


def test_all_is_written_in_order(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], "out")
    for number in range(500):
        output.write(b"%d\n" % number)
    assert output.flush(10)
    assert read(pipe[0], output.written) == b"".join(b"%d\n" % number for number in range(500))


def test_a_reader_that_stops_does_not_stop_the_writer(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], "out")
    began = time.monotonic()
    output.write(bytes(LIMIT))
    assert time.monotonic() - began < 1
    assert not output.flush(0.05)
    assert output.give_up() == LIMIT - output.written
    assert output.lost == LIMIT - len(read(pipe[0], output.written)), "what was counted as written is there"


def test_the_level_says_when_to_stop_and_when_to_go_on(pipe: tuple[int, int]) -> None:
    levels: list[int] = []
    output = Output(pipe[1], "out", lambda: levels.append(output.level))
    room = 1 << 16  # of the pipe
    output.write(bytes(room))
    assert output.flush(10)
    output.write(bytes(HIGH - 1))
    assert levels == []
    output.write(b"x")
    assert levels == [1]
    output.write(bytes(LIMIT - HIGH))
    assert levels == [1, 2]
    read(pipe[0], room + LIMIT)
    assert output.flush(10)
    assert levels == [1, 2, 1, 0]
    assert LOW < HIGH < LIMIT


def test_a_reader_that_is_gone_is_a_reported_error(pipe: tuple[int, int]) -> None:
    told = threading.Event()
    output = Output(pipe[1], "out", told.set)
    os.close(pipe[0])
    output.write(b"nobody reads this")
    assert told.wait(10)
    assert output.error is not None and output.error.errno == errno.EPIPE
    output.write(b"nor this")
    assert output.lost == len(b"nobody reads thisnor this")
    assert output.flush(0)


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        output = Output(full.fileno(), "out")
        output.write(b"x")
        assert output.flush(10)
        assert output.error is not None and output.error.errno == errno.ENOSPC


def test_a_non_blocking_descriptor_gets_all_and_stays_so(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    output = Output(pipe[1], "out")
    output.write(bytes(300_000))
    assert read(pipe[0], 300_000) == bytes(300_000)
    assert output.flush(10)
    assert not os.get_blocking(pipe[1])


def test_a_text_stream_over_it_never_waits(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1], "out")
    with open(pipe[1], "w", closefd=False) as like:
        print("ü" * 100_000, file=output.text(like))
    assert read(pipe[0], 200_001).decode() == "ü" * 100_000 + "\n"
