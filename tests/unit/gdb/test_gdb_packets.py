"""Framing of the remote protocol."""

from __future__ import annotations

import pytest

from pyvmm.gdb.packets import PACKET_SIZE, PacketReader, escape, frame, unescape


def test_a_packet_is_found_however_it_is_cut() -> None:
    data = b"+" + frame(b"qSupported:a;b") + b"\x03" + frame(b"") + b"-"
    for size in (1, 2, 5, len(data)):
        reader = PacketReader()
        found = [each for at in range(0, len(data), size) for each in reader.feed(data[at : at + size])]
        assert found == ["ack", b"qSupported:a;b", "interrupt", b"", "nak"]


@pytest.mark.parametrize("packet", [b"$g#00", b"$g#zz", b"$" + b"m" * (PACKET_SIZE + 2) + b"#00"])
def test_a_damaged_packet_is_reported_and_the_next_one_is_found(packet: bytes) -> None:
    found = list(PacketReader().feed(packet + frame(b"g")))
    assert found == ["damaged", b"g"]


def test_a_packet_without_an_end_takes_no_memory() -> None:
    reader = PacketReader()
    for _ in range(1000):
        assert list(reader.feed(b"$" + b"x" * 1000)) == []
    assert len(reader._pending) <= PACKET_SIZE + 1
    assert list(reader.feed(b"#00" + frame(b"g"))) == ["damaged", b"g"]


def test_binary_data_survives_escaping() -> None:
    data = bytes(range(256)) * 2
    assert unescape(escape(data)) == data
    assert not set(b"$#*") & set(escape(data))
    assert unescape(b"a}") == b"a"
