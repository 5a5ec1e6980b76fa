"""A driver of the network card, played by hand on FakeGuest, and a link whose other end is a test.

card = NetGuest(guest, link)         # adds a card to the bus, opens it: versions, buffers, RNDIS as Linux does
card.send(frame)                     # a frame in guest memory (or a section of the send buffer)
card.frames()                        # what came: the frames of all batches, each completed
link.sent, link.feed(frame, ...)     # the other end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from struct import pack, unpack_from

from pyvmm.devices.netvsc import Card, Netvsc, nvsp, rndis
from pyvmm.memory import PAGE_SIZE
from pyvmm.net.link import Frames, Link
from pyvmm.wire import Buffer
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.fake_ring import COMPLETION, GuestPacket

MAC = bytes.fromhex("5254aabbccdd")
PEER = bytes.fromhex("525400000001")
FILTER = 0xD
REQUESTED = 1


def frame(text: bytes = b"hello", *, to: bytes = PEER, source: bytes = MAC, kind: int = 0x88B5) -> bytes:
    """An Ethernet frame of an experimental type."""
    return to + source + pack(">H", kind) + text


class FakeLink(Link):
    """A link in memory. `room` is how many frames it takes, None for any."""

    kind, place = "test", "here"
    alive = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.coming: list[bytes] = []
        self.space: int | None = None
        self.held = False
        self.reads = 0

    def start(self, frames: Callable[[], object], room: Callable[[], object], end: Callable[[str], object]) -> None:
        self._frames, self._room, self._end = frames, room, end

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        if self.held:
            self.held = False
            self.turn()

    def read(self) -> Frames:
        self.reads += 1
        taken, self.coming = self.coming[:100], self.coming[100:]
        return [memoryview(each) for each in taken]

    def write(self, frames: Sequence[list[Buffer]]) -> int:
        taken = len(frames) if self.space is None else min(self.space, len(frames))
        self.sent += [b"".join(each) for each in frames[:taken]]
        if self.space is not None:
            self.space -= taken
        return taken

    def feed(self, *frames: bytes) -> None:
        """Frames come from the other end."""
        self.coming += frames
        self.turn()

    def turn(self) -> None:
        """What the loop does while there is something to read."""
        while self.coming and not self.held:
            self._frames()

    def widen(self, space: int | None = None) -> None:
        """The link takes frames again."""
        self.space = space
        self._room()

    def die(self, reason: str = "gone") -> None:
        self.alive = False
        self._end(reason)


class NetGuest:
    """A driver with an open card."""

    def __init__(
        self,
        guest: FakeGuest,
        link: FakeLink | None = None,
        *,
        device: Netvsc | None = None,
        version: int = nvsp.VERSIONS[-1],
        receive_pages: int = 256,
        mtu: int = 1500,
        queues: int = 1,
        start: bool = True,
    ) -> None:
        self.guest = guest
        self.link = FakeLink() if link is None else link
        self.device = Netvsc(self.link, Card(MAC, "test card", queues=queues)) if device is None else device
        self.driver = guest.open(self.device, ring_pages=33)
        self.subs: list[FakeDriver] = []
        self.request = 0
        self.next_id = 1
        self.mtu = mtu
        if start:
            self.negotiate(version, receive_pages)

    # NVSP

    def negotiate(self, version: int = nvsp.VERSIONS[-1], receive_pages: int = 256) -> None:
        """What netvsc's probe does, to the interface that is up."""
        assert self.ask(nvsp.Init(version, version))[12:16] == pack("<I", 1)
        if version >= nvsp.VERSION_2:
            self.tell(nvsp.NdisConfig(self.mtu + 14, 0, 0x48))
        self.tell(nvsp.NdisVersion(6, 30))
        self.lend(receive_pages)
        assert self.control(pack("<6I", 2, 24, self.id(), 1, 0, 0x4000))[:4] == pack("<I", 0x80000002)
        self.set(0x0001010E, pack("<I", FILTER))

    def lend(self, receive_pages: int = 256, send_pages: int = 16) -> None:
        relid = self.driver.offer.relid
        self.receive_buffer = self.guest.pages(receive_pages)
        self.receive_gpadl = self.guest.lend(relid, self.receive_buffer)
        answer = self.ask(nvsp.LendBuffer(self.receive_gpadl, nvsp.RECEIVE_BUFFER_ID))
        status, sections, offset, self.section_size, self.sections, _ = unpack_from("<6I", answer, 4)
        assert (status, sections, offset) == (1, 1, 0)
        assert self.section_size * self.sections <= receive_pages * PAGE_SIZE
        self.send_buffer = self.guest.pages(send_pages)
        self.send_gpadl = self.guest.lend(relid, self.send_buffer)
        message = pack("<IIH", nvsp.Type.SEND_BUFFER, self.send_gpadl, 0).ljust(nvsp.SIZE, b"\0")
        status, self.send_section = unpack_from("<II", self.ask_bytes(message), 4)
        assert status == 1

    def id(self) -> int:
        self.next_id += 1
        return self.next_id

    def ask(self, message: nvsp.Message) -> bytes:
        return self.ask_bytes(message.message())

    def ask_bytes(self, message: bytes) -> bytes:
        """Send a message that wants a completion; its payload."""
        number = self.id()
        self.driver.send(message, flags=REQUESTED, transaction_id=number)
        packet = self.driver.take_packet()
        assert packet is not None, "no completion"
        assert (packet.type, packet.transaction_id) == (COMPLETION, number)
        return packet.payload

    def tell(self, message: nvsp.Message) -> None:
        self.driver.send(message.message())

    # RNDIS

    def store(self, data: bytes, pieces: int = 1) -> bytes:
        """Put data into guest memory, in that many pieces of pages; the descriptor of a GPA_DIRECT packet."""
        cuts = [len(data) * at // pieces for at in range(pieces + 1)]
        descriptor = pack("<II", 0, pieces)
        for start, end in pairwise(cuts):
            part = data[start:end]
            skip = (64 + start) % 2048
            pages = self.guest.pages(-(-(skip + len(part)) // PAGE_SIZE))
            self.guest._frames += [page // PAGE_SIZE for page in pages]  # used again, later
            image = bytes(skip) + part
            for number, page in enumerate(pages):
                self.guest.memory.write(page, image[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
            descriptor += pack("<II", len(part), skip) + pack(f"<{len(pages)}Q", *(p // PAGE_SIZE for p in pages))
        return descriptor

    def send_rndis(
        self,
        data: bytes,
        kind: int = nvsp.DATA,
        *,
        pieces: int = 1,
        section: int | None = None,
        split: int = 0,
        driver: FakeDriver | None = None,
    ) -> int:
        """Send an RNDIS message: from guest memory, or its first `split` (0: all) bytes in a section; the id."""
        number = self.id()
        index, size, direct = nvsp.NO_SECTION, 0, data
        if section is not None:
            index, size = section, split or len(data)
            at = section * self.send_section
            for offset in range(size):
                page = self.send_buffer[(at + offset) // PAGE_SIZE]
                self.guest.memory.write(page + (at + offset) % PAGE_SIZE, data[offset : offset + 1])
            direct = data[size:]
        message = pack("<IIII", nvsp.Type.RNDIS_PACKET, kind, index, size).ljust(nvsp.SIZE, b"\0")
        how = {"type": 9, "descriptor": self.store(direct, pieces)} if direct else {}
        (driver or self.driver).send(message, flags=REQUESTED, transaction_id=number, **how)
        return number

    def control(self, message: bytes) -> bytes:
        """Send a control message; its answer."""
        number = self.send_rndis(message, nvsp.CONTROL)
        completion = self.driver.take_packet()
        assert completion is not None
        assert (completion.type, completion.transaction_id) == (COMPLETION, number)
        assert completion.payload[4:8] == pack("<I", 1)
        return self.indication()

    def control_halt(self) -> None:
        """HALT, which has a completion and no answer."""
        number = self.send_rndis(pack("<III", 3, 12, self.id()), nvsp.CONTROL)
        assert self.completed() == [(number, 1)]

    def indication(self) -> bytes:
        """The next control message of the host, completed."""
        packet = self.driver.take_packet()
        assert packet is not None, "no control message"
        assert packet.payload[4:8] == pack("<I", nvsp.CONTROL)
        (message,) = self.messages(packet)
        self.complete(packet)
        return message

    def query(self, oid: int, value: bytes = b"") -> tuple[int, bytes]:
        """QUERY; the status and the value."""
        number = self.id()
        head = rndis.Request(rndis.Type.QUERY, 28 + len(value), number, oid, len(value), 20, 0).build()
        answer = self.control(head + value)
        kind, _, request, status, size, offset = unpack_from("<6I", answer)
        assert (kind, request) == (0x80000004, number)
        return status, answer[8 + offset : 8 + offset + size]

    def set(self, oid: int, value: bytes) -> int:
        """SET; the status."""
        number = self.id()
        head = rndis.Request(rndis.Type.SET, 28 + len(value), number, oid, len(value), 20, 0).build()
        kind, size, request, status = unpack_from("<4I", self.control(head + value))
        assert (kind, size, request) == (0x80000005, 16, number)
        return status

    # Frames

    def send(self, *frames: bytes, info: bytes = b"", **how: object) -> int:
        """Send frames in one message; the id."""
        return self.send_rndis(b"".join(packet(each, info) for each in frames), **how)  # type: ignore[arg-type]

    def completed(self, driver: FakeDriver | None = None) -> list[tuple[int, int]]:
        """Ids and status of the packets completed meanwhile."""
        found = []
        while (taken := (driver or self.driver).take_packet()) is not None:
            assert taken.type == COMPLETION
            found.append((taken.transaction_id, unpack_from("<I", taken.payload, 4)[0]))
        return found

    def messages(self, packet: GuestPacket) -> list[bytes]:
        """The RNDIS messages of a TRANSFER_PAGES packet."""
        assert packet.type == 7 and packet.flags == REQUESTED, packet
        number, _, _, count = unpack_from("<HBBI", packet.descriptor)
        assert number == nvsp.RECEIVE_BUFFER_ID
        found = []
        for at in range(count):
            length, offset = unpack_from("<II", packet.descriptor, 8 + 8 * at)
            assert length <= self.section_size, "longer than a section"
            data = b""
            for position in range(offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE + 1):
                data += self.guest.memory.read(self.receive_buffer[position], PAGE_SIZE)
            found.append(data[offset % PAGE_SIZE : offset % PAGE_SIZE + length])
        return found

    def complete(self, packet: GuestPacket, driver: FakeDriver | None = None, status: int = 1) -> None:
        payload = pack("<II", nvsp.Type.RNDIS_PACKET_COMPLETE, status)
        (driver or self.driver).send(payload, type=COMPLETION, transaction_id=packet.transaction_id)

    def batches(self, driver: FakeDriver | None = None) -> list[GuestPacket]:
        """The batches that came and are not completed yet."""
        found = []
        while (taken := (driver or self.driver).take_packet()) is not None:
            found.append(taken)
        return found

    def frames(self, driver: FakeDriver | None = None) -> list[bytes]:
        """The frames that came, each batch completed. Completions of what was sent are skipped."""
        found: list[bytes] = []
        while (taken := (driver or self.driver).take_packet()) is not None:
            if taken.type != COMPLETION:
                found += [unpack(message) for message in self.messages(taken)]
                self.complete(taken, driver)
        return found


def packet(data: bytes, info: bytes = b"", padding: int = 0) -> bytes:
    """A PACKET with a frame and per-packet information."""
    size = 44 + len(info) + len(data) + padding
    offset = 36 if info else 0
    head = pack("<11I", 1, size, 36 + len(info), len(data), 0, 0, 0, offset, len(info), 0, 0)
    return head + info + data + bytes(padding)


def info(kind: int, value: int) -> bytes:
    """One piece of per-packet information."""
    return pack("<IIII", 16, kind, 12, value)


def unpack(message: bytes) -> bytes:
    """The frame of a PACKET from the host, checked as Linux checks it."""
    kind, length, offset, size, _, _, _, info_at, info_size, _, _ = unpack_from("<11I", message)
    assert (kind, length) == (1, len(message))
    assert 8 + offset + size <= length
    at, end = 8 + info_at, 8 + info_at + info_size
    while info_at and at < end:
        piece, _, value_at = unpack_from("<III", message, at)
        assert 12 <= value_at < piece <= end - at, "Linux would loop for ever"
        at += piece
    assert at == end or not info_at
    return message[8 + offset : 8 + offset + size]
