"""Decoding: any bytes as a message, a packet of each device, a hypercall, shown as lines of a terminal's width."""

from __future__ import annotations

from pyvmm import decode
from pyvmm.decode.payloads import decoders
from pyvmm.decode.text import lines
from tests.fuzz.feed import Feed

CHANNELS = ("", "no such device", *sorted(decoders()))


def _shown(decoded: decode.Decoded, width: int) -> None:
    for line in lines(decoded, width):
        assert len(line) <= width, line
        assert line.isprintable() or not line


def decode_items(data: bytes) -> None:
    """Each kind of item, from the same bytes."""
    feed = Feed(data)
    channel, width = feed.choice(CHANNELS), 20 + feed.u8()
    rest = feed.rest()
    for decoded in (
        decode.message(rest),
        decode.packet(rest, channel, to_guest=bool(len(rest) % 2)),
        decode.post_message(rest),
        decode.synic_message(rest),
        decode.hypercall(int.from_bytes(rest[:8], "little")),
    ):
        _shown(decoded, width)


def decode_payloads(data: bytes) -> None:
    """A device's payload in a packet whose header is right."""
    feed = Feed(data)
    channel, width = feed.choice(CHANNELS), 20 + feed.u8()
    rest = feed.rest()
    rest += bytes(-len(rest) % 8)
    head = bytes([6, 0, 2, 0]) + (2 + len(rest) // 8).to_bytes(2, "little") + bytes(10)
    _shown(decode.packet(head + rest, channel), width)


TARGETS = {"file_decode_items": decode_items, "file_decode_payloads": decode_payloads}
