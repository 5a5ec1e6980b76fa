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


def stream(data: bytes) -> None:
    """A peer that sends anything: frames of a possible size come out, or the link ends."""
    feed = Feed(data)
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    loop = Loop()
    link = PasstLink(loop, ours) if feed.flag() else StreamLink(loop, ours, "test")
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
        if feed.flag():
            link.write([[feed.take(feed.below(150))]])
    assert link.alive != bool(ended)
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


TARGETS = {"file_net_stream": stream, "file_net_spec": spec}
