"""The stream of a network card's peer, and values of `--net`."""

from __future__ import annotations

import socket

from pyvmm.errors import ConfigError
from pyvmm.loop import Loop
from pyvmm.net.link import FRAME_LIMIT
from pyvmm.net.passt_link import PasstLink
from pyvmm.net.spec import parse_net
from pyvmm.net.stream import StreamLink
from tests.fuzz.feed import Feed

_TCP = bytes(range(4)) + bytes(3) + b"\1" + bytes(3) + b"\1\x50\0\0\0\0\0\0\0"
SEGMENTS = (
    bytes(12) + b"\x08\x00\x45\0\0\x28\0\0\0\0\x40\6\0\0" + bytes(8) + _TCP,
    bytes(12) + b"\x08\x00\x45\0\0\x28\0\0\0\0\x40\6\0\0" + bytes(8) + _TCP[2:4] + _TCP[:2] + _TCP[4:],
    bytes(12) + b"\x86\xdd\x60\0\0\0\0\x14\6\x40" + bytes(32) + _TCP,
)
"""A segment without data, of both ends over IPv4 and of one over IPv6."""


def stream(data: bytes) -> None:
    """A peer that sends anything: frames of a possible size come out, or the link ends."""
    feed = Feed(data)
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    loop = Loop()
    link = StreamLink(loop, ours, "test")
    ended: list[str] = []

    def frames() -> None:
        for each in link.read():
            assert 0 < len(each) <= FRAME_LIMIT

    link.start(frames, lambda: None, ended.append)
    while feed and not ended:
        size = feed.choice((feed.below(200), 0, feed.word(4)))
        piece = size.to_bytes(4, "big") + feed.take(feed.below(300))
        peer.send(piece[: 1 + feed.below(len(piece))] if feed.flag() else piece)
        loop.step(0)
    assert link.alive != bool(ended)
    link.close()
    peer.close()
    loop.close()


def passt(data: bytes) -> None:
    """Segments of two ends of a few connections, some bytes of them changed: each comes out, or is kept."""
    feed = Feed(data)
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.setblocking(False)
    loop = Loop()
    link = PasstLink(loop, ours)
    came: list[int] = []
    link.start(lambda: came.extend(map(len, link.read())), lambda: None, lambda reason: None)
    sent, written = list[int](), 0
    for _ in range(60):
        if not feed:
            break
        frame = bytearray(feed.choice(SEGMENTS))
        frame[-7] = 1 << feed.below(5) | 16 * feed.flag()
        for _ in range(feed.below(3)):
            frame[feed.below(len(frame))] = feed.u8()
        del frame[1 + feed.below(len(frame) * 4) :]
        if feed.flag():
            sent.append(len(frame))
            peer.send(len(frame).to_bytes(4, "big") + frame)
            loop.step(0)
        else:
            cut = feed.below(len(frame))
            assert link.write([[memoryview(frame)[:cut], memoryview(frame)[cut:]]]) == 1
            written += 1
    assert came == sent
    assert link.kept <= written
    link.close()
    peer.close()
    loop.close()


def spec(data: bytes) -> None:
    """Words of a network: refused in one line, or written back the same."""
    feed = Feed(data)
    words = (
        "user",
        "tap=t",
        "none",
        "tap",
        ",",
        "mac=52:54:00:00:00:01",
        "hostfwd=",
        "tcp:",
        ":22",
        "-:",
        "22",
        "mtu=",
        "[::1]",
    )
    text = "".join(
        feed.choice(words) if feed.below(4) else feed.take(2).decode("latin-1") for _ in range(feed.below(12))
    )
    try:
        parsed = parse_net(text)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    assert parse_net(str(parsed)) == parsed


TARGETS = {"file_net_stream": stream, "file_net_passt": passt, "file_net_spec": spec}
