"""Linux's storvsc driver, played by hand: the handshake, commands with memory attached, and their answers.

scsi = ScsiGuest(guest, controller)                 # handshake done
answer = scsi.command(READ_10(0, 8), length=4096)   # answer.data: what the host stored
answer = scsi.command(WRITE_10(0, 8), data=bytes(4096))
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from struct import pack, pack_into, unpack_from

from pyvmm.devices.storvsc.controller import Controller
from pyvmm.memory import PAGE_SIZE
from tests.support.fake_guest import FakeDriver, FakeGuest

GPA_DIRECT, COMPLETION = 9, 11
LATEST = 0x0602


@dataclass
class Answer:
    """The answer to a command."""

    packet: bytes
    data: bytes = b""

    @property
    def srb_status(self) -> int:
        return self.packet[14]

    @property
    def ok(self) -> bool:
        return self.packet[14:16] == b"\x01\x00"

    @property
    def moved(self) -> int:
        return int(unpack_from("<I", self.packet, 24)[0])

    @property
    def sense(self) -> tuple[int, int, int]:
        """Sense key, code, qualifier; only with CHECK CONDITION."""
        assert self.packet[14:16] == b"\x84\x02", self.packet[14:16].hex()
        sense = self.packet[28 : 28 + self.packet[21]]
        return sense[2] & 15, sense[12], sense[13]


def vstor(operation: int, *, size: int = 64, value: int = 0) -> bytes:
    """A packet that is no command."""
    packet = bytearray(size)
    pack_into("<IIIH", packet, 0, operation, 1, 0, value)
    return bytes(packet)


def srb(cdb: bytes, *, lun: int = 0, target: int = 0, path: int = 0, length: int = 0, direction: int = 2) -> bytes:
    """EXECUTE_SRB for a command."""
    packet = bytearray(64)
    pack_into("<III", packet, 0, 3, 1, 0)
    pack_into("<HBBBBBBBBBxI", packet, 12, 52, 0, 0, 2, path, target, lun, len(cdb), 20, direction, length)
    packet[28 : 28 + len(cdb)] = cdb
    return bytes(packet)


def page_list(pages: list[int], length: int, offset: int = 0) -> bytes:
    """The descriptor of a GPA_DIRECT packet of one range."""
    return pack("<IIII", 0, 1, length, offset) + pack(f"<{len(pages)}Q", *(page // PAGE_SIZE for page in pages))


class ScsiGuest:
    """A driver on `controller`, after the handshake unless `begin` is False."""

    def __init__(
        self, guest: FakeGuest, controller: Controller, *, begin: bool = True, version: int = LATEST, size: int = 64
    ) -> None:
        self.guest, self.controller = guest, controller
        self.driver = guest.open(controller, ring_pages=8)
        self.number = 0x1000
        self.properties = b""
        if begin:
            for operation, value in ((7, 0), (9, version), (10, 0), (8, 0)):
                answer = self.ask(vstor(operation, value=value, size=size))
                assert unpack_from("<II", answer)[0] == 1
                assert unpack_from("<I", answer, 8)[0] == 0, f"operation {operation} refused"
                if operation == 10:
                    self.properties = answer

    def ask(self, packet: bytes, driver: FakeDriver | None = None, **how: int) -> bytes:
        """Send a packet and return the payload of its completion."""
        number = self.post(packet, driver, **how)
        return self.completion(number, driver)

    def post(self, packet: bytes, driver: FakeDriver | None = None, **how: object) -> int:
        """Send a packet; return its transaction id."""
        self.number += 1
        (driver or self.driver).send(packet, flags=1, transaction_id=self.number, **how)
        return self.number

    def completion(self, number: int, driver: FakeDriver | None = None) -> bytes:
        """Wait for the next completion, which must be for `number`."""
        packet = self.next_packet(driver)
        assert (packet.type, packet.transaction_id) == (COMPLETION, number)
        return packet.payload

    def next_packet(self, driver: FakeDriver | None = None):  # type: ignore[no-untyped-def]
        """Wait for the next packet: threads may be at work on it."""
        until = time.monotonic() + 10
        while (packet := (driver or self.driver).take_packet()) is None:
            assert time.monotonic() < until, "no answer"
            self.guest.loop.run()
            time.sleep(0.0002)
        return packet

    def share(self, data: bytes | None, length: int, offset: int = 0) -> tuple[list[int], bytes]:
        """Fresh pages with `data`, and a descriptor for them."""
        pages = self.guest.pages(-(-(offset + length) // PAGE_SIZE))
        if data is not None:
            for at, page in enumerate(pages):
                start = at * PAGE_SIZE - offset
                piece = data[max(0, start) : start + PAGE_SIZE]
                self.guest.memory.write(page + (offset if not at else 0), piece)
        return pages, page_list(pages, length, offset)

    def collect(self, pages: list[int], length: int, offset: int = 0) -> bytes:
        """What lies in shared pages."""
        whole = b"".join(self.guest.memory.read(page, PAGE_SIZE) for page in pages)
        return whole[offset : offset + length]

    def command(
        self,
        cdb: bytes,
        *,
        data: bytes | None = None,
        length: int = 0,
        offset: int = 0,
        driver: FakeDriver | None = None,
        **where: int,
    ) -> Answer:
        """Execute a command and wait for its answer."""
        length = len(data) if data is not None else length
        if not length:
            return Answer(self.ask(srb(cdb, **where), driver))
        pages, descriptor = self.share(data, length, offset)
        packet = srb(cdb, length=length, direction=0 if data is not None else 1, **where)
        number = self.post(packet, driver, type=GPA_DIRECT, descriptor=descriptor)
        answer = self.completion(number, driver)
        return Answer(answer, b"" if data is not None else self.collect(pages, length, offset))


def read10(block: int, blocks: int) -> bytes:
    return pack(">BBIBHB", 0x28, 0, block, 0, blocks, 0)


def write10(block: int, blocks: int, *, through: bool = False) -> bytes:
    return pack(">BBIBHB", 0x2A, 8 if through else 0, block, 0, blocks, 0)


def inquiry(size: int = 96, page: int | None = None) -> bytes:
    return pack(">BBBHB", 0x12, page is not None, page or 0, size, 0)


def unmap(*ranges: tuple[int, int]) -> tuple[bytes, bytes]:
    """The CDB and the parameter list of UNMAP."""
    entries = b"".join(pack(">QI4x", *each) for each in ranges)
    parameters = pack(">HH4x", len(entries) + 6, len(entries)) + entries
    return pack(">BBIBHB", 0x42, 0, 0, 0, len(parameters), 0), parameters


FLUSH = pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)
TEST_UNIT_READY = bytes(6)
REPORT_LUNS = pack(">BBBBBBIBB", 0xA0, 0, 0, 0, 0, 0, 4096, 0, 0)
