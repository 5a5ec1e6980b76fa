"""Dynamic memory as the raw host speaks it: requests with any content, and the guest's answers.

The machine's own balloon device goes on serving the guest unless it is silent. It refuses (and counts) answers to
requests that it did not make, and its books do not know of them: `pages_out` and `taken` are for tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.protocol import (
    PAGE_COUNT_SHIFT,
    RANGE_PAGES_LIMIT,
    RANGES_AT,
    BalloonResponse,
    HotAddResponse,
    MessageType,
)
from pyvmm.devices.balloon.ranges import PageRange, PageRanges
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.ring import packet_size

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host
    from pyvmm.vmbus.channel import Channel

Ranges = Iterable[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A message of the guest: its header's fields, and all of its bytes with the packet's padding."""

    type: int
    size: int
    trans_id: int
    data: bytes


class RawBalloon:
    """Messages of dynamic memory over one device's channel. Numbers go out as given, cut to their fields' width."""

    def __init__(self, host: Host, device: VmbusDevice) -> None:
        self._host = host
        self.device = device
        self.trans_id = 10_000
        """Transaction id of the next message that is not given one. Linux ignores the host's."""

    # What the guest said

    @property
    def received(self) -> list[Answer]:
        """Messages of the guest's driver since the raw host was first used, oldest first."""
        return [_answer(each.payload) for each in self._host.seams.packets if each.device is self.device]

    def answers(self, kind: int) -> list[Answer]:
        """Messages of the guest's driver of one type."""
        return [each for each in self.received if each.type == kind]

    def wait_for(self, kind: int, timeout: float = 10.0, *, since: int = 0) -> Answer:
        """Return the driver's message number `since` (from 0) of this type; wait for it. Raises TimedOut."""
        name = MessageType(kind).name if kind in MessageType.__members__.values() else str(kind)
        self._host.parts.until(lambda: len(self.answers(kind)) > since, timeout, f"{name} of the guest")
        return self.answers(kind)[since]

    def pages_out(self) -> list[PageRange]:
        """Return the pages that the device holds for the guest, by rising address: what `vm.balloon.resize` took."""
        if not isinstance(self.device, BalloonDevice):
            raise ValueError("this device keeps no books: see `take`")
        ledger = self.device.machine.ledger
        return list(ledger.removed_both | ledger.removed_guest)

    def take(self, pages: int, timeout: float = 20.0) -> list[tuple[int, int]]:
        """Ask for pages and return the ranges that the guest gave. Raises TimedOut if it does not end its answer."""
        before = len(self.answers(MessageType.BALLOON_RESPONSE))
        self.send_balloon(pages)
        given: list[BalloonResponse] = []

        def answered() -> bool:
            given[:] = [BalloonResponse.parse(e.data) for e in self.answers(MessageType.BALLOON_RESPONSE)[before:]]
            return bool(given) and not given[-1].more

        self._host.parts.until(answered, timeout, "end of the guest's BALLOON_RESPONSE")
        return [each for response in given for each in response.ranges]

    def hot_add(
        self, start: int, pages: int, region: tuple[int, int] | None = None, timeout: float = 30.0
    ) -> tuple[int, int]:
        """Offer memory and return (pages, result) of the guest's answer. Raises TimedOut."""
        before = len(self.answers(MessageType.HOT_ADD_RESPONSE))
        self.send_hot_add((start, pages), region)
        answer = HotAddResponse.parse(self.wait_for(MessageType.HOT_ADD_RESPONSE, timeout, since=before).data)
        return answer.pages, answer.result

    # The machine's device

    @property
    def is_silent(self) -> bool:
        """Whether the machine's device gets nothing from the guest."""
        return self.device in self._host.seams.silent

    def silence(self) -> None:
        """From now on the device gets nothing from the guest, so that it does not answer: the test is the host."""
        self._host.seams.silent.add(self.device)

    def resume(self) -> None:
        """Let the device have the guest's messages again. What it missed it has missed."""
        self._host.seams.silent.discard(self.device)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Around what the machine's device shall not see."""
        self.silence()
        try:
            yield
        finally:
            self.resume()

    # Requests

    def send_balloon(self, pages: int, *, reserved: int = 0, trans_id: int | None = None) -> None:
        """Send a BALLOON_REQUEST for a number of pages, any u32."""
        self.send_type(MessageType.BALLOON_REQUEST, pack("<II", pages & _U32, reserved), trans_id=trans_id)

    def send_unballoon(
        self,
        ranges: Ranges,
        *,
        count: int | None = None,
        more: bool | None = None,
        trans_id: int | None = None,
        size: int | None = None,
    ) -> None:
        """Send UNBALLOON_REQUESTs for ranges of pages: in as many messages as they need, `more` set in all but the
        last. With `count` (the header's number of ranges), `more` or `size` it is one message with just these."""
        words = _words(ranges)
        if count is None and more is None and size is None:
            room = (self._channel.max_payload - RANGES_AT) // 8
            parts = [words[at : at + room] for at in range(0, len(words), room)] or [[]]
            for number, part in enumerate(parts, 1):
                self._unballoon(part, len(part), number < len(parts), trans_id, None)
        else:
            self._unballoon(words, len(words) if count is None else count, bool(more), trans_id, size)

    def _unballoon(
        self, words: Sequence[int], count: int, more: bool, trans_id: int | None, size: int | None
    ) -> None:
        body = pack("<II", int(more), count & _U32) + pack(f"<{len(words)}Q", *words)
        self.send_type(MessageType.UNBALLOON_REQUEST, body, trans_id=trans_id, size=size)

    def send_hot_add(
        self, range: tuple[int, int], region: tuple[int, int] | None = None, *, trans_id: int | None = None
    ) -> None:
        """Send a HOT_ADD_REQUEST: of 16 bytes, or 24 with the region of blocks that the guest shall make."""
        words = _words([range] if region is None else [range, region], split=False)
        self.send_type(MessageType.HOT_ADD_REQUEST, pack(f"<{len(words)}Q", *words), trans_id=trans_id)

    def send_version_response(self, accepted: int = 1, *, trans_id: int | None = None) -> None:
        """Send a VERSION_RESPONSE; bit 0 of `accepted` counts."""
        self.send_type(MessageType.VERSION_RESPONSE, pack("<Q", accepted), trans_id=trans_id)

    def send_caps_response(self, flags: int = 1, *, trans_id: int | None = None) -> None:
        """Send a CAPABILITIES_RESPONSE: bit 0 accepted, bit 1 hot remove, bit 2 suppress pressure reports."""
        self.send_type(MessageType.CAPABILITIES_RESPONSE, pack("<Q", flags), trans_id=trans_id)

    def send_info(
        self,
        pages: int = 0,
        *,
        type: int = 0,
        data_size: int = 8,
        info_size: int = 16,
        data: bytes | None = None,
        trans_id: int | None = None,
    ) -> None:
        """Send an INFO; type 0 is the guest's largest size in pages. `data` instead of `pages` is sent as it is."""
        tail = pack("<Q", pages & _U64) if data is None else data
        self.send_type(MessageType.INFO, pack("<IIII", 0, info_size, type, data_size) + tail, trans_id=trans_id)

    def send_type(
        self, kind: int, body: bytes = b"", *, trans_id: int | None = None, size: int | None = None
    ) -> None:
        """Send a message of any type: the header of 8 bytes, whose size is right unless given, and `body`."""
        number = self._next_trans_id() if trans_id is None else trans_id
        length = 8 + len(body) if size is None else size
        self.send(pack("<HHI", kind & 0xFFFF, length & 0xFFFF, number & _U32) + body)

    def send(self, message: bytes) -> None:
        """Send any bytes as the payload of an in-band packet. Longer than a well-behaved host's (4080 bytes): they
        overwrite the ring where it is not empty."""
        channel = self._channel
        if len(message) <= channel.max_payload:
            channel.send(message)
        else:
            rings = self._host.ring(self.device)
            if packet_size(len(message)) >= rings.to_guest.size:
                raise ValueError(f"{len(message)} bytes in a ring of {rings.to_guest.size}")
            rings.send(rings.packet(message))

    @property
    def _channel(self) -> Channel:
        return self._host.channel(self.device)

    def _next_trans_id(self) -> int:
        self.trans_id += 1
        return self.trans_id


_U32, _U64 = 0xFFFFFFFF, (1 << 64) - 1


def _answer(payload: bytes) -> Answer:
    if len(payload) < 8:
        return Answer(-1, len(payload), 0, payload)
    kind, size, trans_id = unpack_from("<HHI", payload)
    return Answer(kind, size, trans_id, payload[:size] if 8 <= size <= len(payload) else payload)


def _words(ranges: Ranges, *, split: bool = True) -> list[int]:
    """Return ranges as the protocol packs them: frame in 40 bits, pages in 24. Raises ValueError for others."""
    words = []
    for start, pages in ranges:
        if pages < 0:
            raise ValueError(
                f"{pages} pages at frame {start:#x}: a range has 0 pages or more (send_type sends any bytes)"
            )
        if not 0 <= start < 1 << PAGE_COUNT_SHIFT:
            raise ValueError(f"{pages} pages at frame {start:#x}: a frame has {PAGE_COUNT_SHIFT} bits")
        if pages > RANGE_PAGES_LIMIT and not split:
            raise ValueError(f"{pages} pages in one range: {RANGE_PAGES_LIMIT} at most")
        parts = PageRange(start, pages).parts(RANGE_PAGES_LIMIT)
        words += [part.start | part.pages << PAGE_COUNT_SHIFT for part in parts]
    return words


def merged(ranges: Ranges) -> list[PageRange]:
    """Return ranges sorted and merged."""
    return list(PageRanges(ranges))
