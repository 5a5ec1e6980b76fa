"""Decoding: any bytes as a message, a packet of each device, a hypercall, shown as lines of a terminal's width."""

from __future__ import annotations

from contextlib import suppress
from xml.etree import ElementTree

from pyvmm import decode
from pyvmm.analysis.page_map import LOOKS, read_map, svg
from pyvmm.analysis.page_map import lines as map_lines
from pyvmm.decode.payloads import decoders
from pyvmm.decode.text import lines
from pyvmm.errors import ConfigError
from pyvmm.step.commands import parse
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


def step_words(data: bytes) -> None:
    """Words of `pyvmm step`'s prompt."""
    with suppress(ConfigError):
        parse(data.decode("utf-8", "replace"))


def map_reply(data: bytes) -> None:
    """A monitor's reply to x-query-map, drawn both ways."""
    feed = Feed(data)
    owners = (*LOOKS, "", "\x1b[2J")
    spans = [
        {"start": feed.word(), "size": feed.word(4), "owner": feed.choice(owners), "detail": "x"}
        for _ in range(6)
        if feed
    ]
    reply = {"name": "vm", "spans": spans[:4], "special": spans[4:], "totals": spans, "coarse": False, "left-out": 0}
    with suppress(ConfigError):
        found = read_map(reply)
        assert all(line.isprintable() for line in map_lines(found, 40 + feed.u8(), lambda owner, text: text))
        ElementTree.fromstring(svg(found))


TARGETS = {
    "file_step_words": step_words,
    "file_map_reply": map_reply,
    "file_decode_items": decode_items,
    "file_decode_payloads": decode_payloads,
}
