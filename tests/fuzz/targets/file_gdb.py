"""What a debugger sends: raw bytes, and bodies in well-formed packets."""

from __future__ import annotations

from pyvmm.gdb.packets import PACKET_SIZE, PacketReader, frame
from pyvmm.gdb.session import Session
from pyvmm.gdb.target import Stop
from tests.support.fake_target import FakeTarget


def _play(data: bytes) -> None:
    target, sent, closed = FakeTarget(), bytearray(), list[str]()
    session, reader = Session(target, sent.extend, closed.append), PacketReader()
    session.begin()
    for at in range(0, len(data), 997):
        for message in reader.feed(data[at : at + 997]):
            session.handle(message)
            assert len(reader._pending) <= PACKET_SIZE + 1000
            if closed:
                return
    target.stopped(Stop(0))
    session.disconnected()
    assert "detach" in target.calls


def raw(data: bytes) -> None:
    _play(data)


def bodies(data: bytes) -> None:
    """Each line is a packet's body."""
    _play(b"".join(frame(line) for line in data.split(b"\n")))


TARGETS = {"file_gdb": raw, "file_gdb_packets": bodies}
