"""Frames and windows of the emulated host's port."""

from __future__ import annotations

import random

import pytest

from pyvmm.host.protocol import (
    CHANNELS,
    HEADER,
    MAX_PAYLOAD,
    WINDOW,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    ReceiveWindow,
    SendWindow,
)

FRAMES = [
    Frame(Kind.START, 7, 0, b"{}"),
    Frame(Kind.DATA, 7, 2, bytes(range(256))),
    Frame.of_number(Kind.EXIT, 7, -9),
    Frame(Kind.END, 0xFFFFFFFF, 3),
]


def test_frames_survive_the_wire_in_one_piece() -> None:
    assert list(Decoder().feed(b"".join(frame.build() for frame in FRAMES))) == FRAMES


@pytest.mark.parametrize("step", [1, 3, 13, 100])
def test_frames_survive_the_wire_in_pieces(step: int) -> None:
    decoder, wire = Decoder(), b"".join(frame.build() for frame in FRAMES)
    got = [frame for at in range(0, len(wire), step) for frame in decoder.feed(wire[at : at + step])]
    assert got == FRAMES


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(1, 0, 0, 0, 0),
        HEADER.pack(1, 200, 0, 0, 0),
        HEADER.pack(1, Kind.DATA, CHANNELS, 0, 0),
        HEADER.pack(1, Kind.DATA, 0, 1, 0),
        HEADER.pack(1, Kind.DATA, 0, 0, MAX_PAYLOAD + 1),
    ],
    ids=["kind 0", "kind 200", "channel", "not zero", "too long"],
)
def test_a_header_that_cannot_be_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder().feed(header))


def test_frames_before_a_bad_header_are_given() -> None:
    stream = Decoder().feed(FRAMES[0].build() + bytes(HEADER.size))
    assert next(stream) == FRAMES[0]
    with pytest.raises(ProtocolError):
        next(stream)


def test_noise_gives_frames_or_a_protocol_error() -> None:
    noise = random.Random(1)
    for _ in range(300):
        try:
            list(Decoder().feed(noise.randbytes(noise.randrange(200))))
        except ProtocolError:
            pass


def test_a_payload_that_is_too_long_is_not_built() -> None:
    with pytest.raises(ProtocolError):
        Frame(Kind.START, 1, 0, bytes(MAX_PAYLOAD + 1)).build()


@pytest.mark.parametrize("payload", [b"", b"abc", b"abcde"])
def test_a_number_has_four_bytes(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        _ = Frame(Kind.CREDIT, 1, 0, payload).number


def test_a_status_may_be_negative() -> None:
    assert Frame.of_number(Kind.EXIT, 1, -15).number == -15


def test_credit_beyond_what_was_sent_is_refused() -> None:
    window = SendWindow()
    window.sent(10)
    window.credited(10)
    with pytest.raises(ProtocolError):
        window.credited(1)


def test_data_beyond_the_window_is_refused() -> None:
    window = ReceiveWindow()
    window.received(bytes(WINDOW))
    with pytest.raises(ProtocolError):
        window.received(b"x")


def test_all_taken_bytes_come_back_as_credit() -> None:
    window = ReceiveWindow()
    window.received(bytes(WINDOW))
    assert sum(window.taken(4096) for _ in range(WINDOW // 4096)) == WINDOW
