"""The link to passt, with remedies for two of its faults, at the end and at the beginning of connections.

**A FIN** must not reach it before all of the connection's data. Source: passt's tcp.c, tcp_data_from_tap(),
2023_03_09 to 2025_01. A segment with FIN and no data is accepted whatever its sequence number is. If passt has
dropped data before it, as it does while the host's socket is full, it acknowledges the end, shuts the socket, and
ignores that data when the guest sends it again. The receiver gets the beginning of the data and no error. FIN in a
segment with data is handled well.

    guest --FIN; the data before it is not acknowledged--> kept here
    passt --ACK of all that data--> guest, and the FIN goes to passt

**A RST** from it has the number of an acknowledgement but not the flag ACK (2023_03_09; tcp_send_flag()). Linux
ignores such an answer to its SYN, so that a connection to a closed port ends after two minutes. The flag is added.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pyvmm.net.link import Frames, Poller
from pyvmm.net.stream import StreamLink
from pyvmm.wire import Buffer

CONNECTIONS_LIMIT = 4096
"""Connections whose acknowledged position is known. With more, all are forgotten, and their FINs pass."""
KEPT_LIMIT = 256
"""FINs kept. What comes beyond is dropped, and the guest repeats it."""
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_TCP, _IPV4, _IPV6 = 6, b"\x08\x00", b"\x86\xdd"
_LARGEST = 14 + 60 + 60
"""Bytes of a frame of TCP over IP without data."""


class PasstLink(StreamLink):
    """A stream link that keeps a FIN until passt has acknowledged what lies before it, and completes its RSTs.

    A connection is named by the addresses and ports as they lie in passt's frames.
    """

    def __init__(self, loop: Poller, connection: socket.socket, place: str = "") -> None:
        super().__init__(loop, connection, "user", place)
        self._acknowledged: dict[bytes, bytes] = {}  # sequence number by connection
        self._kept: dict[bytes, tuple[int, bytes]] = {}  # sequence number and frame by connection

    @property
    def kept(self) -> int:
        """Return the number of FINs that wait."""
        return len(self._kept)

    def read(self) -> Frames:
        frames = super().read()
        known = self._acknowledged
        for frame in frames:  # passt writes neither options of IPv4 nor extension headers
            if len(frame) >= 54 and frame[12] == 8 and frame[23] == _TCP:
                name, tcp = bytes(frame[26:38]), 34
            elif len(frame) >= 74 and frame[12] == 0x86 and frame[20] == _TCP:
                name, tcp = bytes(frame[22:58]), 54
            else:
                continue
            known[name] = bytes(frame[tcp + 8 : tcp + 12])
            flags = frame[tcp + 13]
            if flags == _RST:
                _acknowledge(frame, tcp)
            if self._kept and name in self._kept:
                if flags & (_SYN | _RST):
                    del self._kept[name]
                else:
                    self._release(name)
        if len(known) > CONNECTIONS_LIMIT:
            known.clear()
        return frames

    def write(self, frames: Sequence[list[Buffer]]) -> int:
        early = [
            number
            for number, frame in enumerate(frames)
            if len(frame[0]) + len(frame[-1]) <= 2 * _LARGEST and self._keep(frame)
        ]
        if not early:
            return super().write(frames)
        taken = super().write([frame for number, frame in enumerate(frames) if number not in early])
        for number in early:
            taken += number <= taken  # one behind a frame that was not taken comes again
        return taken

    def _keep(self, parts: list[Buffer]) -> bool:
        """Return whether a frame of the guest is a FIN that comes too early; it is kept then."""
        if sum(map(len, parts)) > _LARGEST:
            return False
        frame = b"".join(parts)
        found = _lone_fin(frame)
        if found is None:
            return False
        name, sequence = found
        if name not in self._acknowledged or self._covers(name, sequence):
            self._kept.pop(name, None)
            return False
        if name in self._kept or len(self._kept) < KEPT_LIMIT:
            self._kept[name] = sequence, frame
        return True

    def _release(self, name: bytes) -> None:
        """Send the FIN of a connection if its time has come. If passt takes none now, the guest repeats it."""
        sequence, frame = self._kept[name]
        if self._covers(name, sequence):
            del self._kept[name]
            super().write([[frame]])

    def _covers(self, name: bytes, sequence: int) -> bool:
        """Return whether passt has acknowledged all before `sequence`."""
        return (int.from_bytes(self._acknowledged[name], "big") - sequence) & 0xFFFFFFFF < 1 << 31


def _acknowledge(frame: memoryview, tcp: int) -> None:
    """Add the flag ACK to a segment without it, and to its checksum."""
    frame[tcp + 13] |= _ACK
    old = int.from_bytes(frame[tcp + 16 : tcp + 18], "big")
    frame[tcp + 16 : tcp + 18] = (old - _ACK if old > _ACK else old - _ACK + 0xFFFF).to_bytes(2, "big")


def _lone_fin(frame: bytes) -> tuple[bytes, int] | None:
    """Return the connection of a FIN without data, and its sequence number; None for another frame."""
    kind = frame[12:14]
    if kind == _IPV4 and len(frame) >= 54 and frame[23] == _TCP:
        tcp, end = 14 + (frame[14] & 0xF) * 4, 14 + int.from_bytes(frame[16:18], "big")
        addresses = frame[30:34] + frame[26:30]
    elif kind == _IPV6 and len(frame) >= 74 and frame[20] == _TCP:
        tcp, end = 54, 54 + int.from_bytes(frame[18:20], "big")
        addresses = frame[38:54] + frame[22:38]
    else:
        return None
    if tcp + 20 > len(frame) or not frame[tcp + 13] & _FIN or end > tcp + (frame[tcp + 12] >> 4) * 4:
        return None
    ports = frame[tcp + 2 : tcp + 4] + frame[tcp : tcp + 2]
    return addresses + ports, int.from_bytes(frame[tcp + 4 : tcp + 8], "big")
