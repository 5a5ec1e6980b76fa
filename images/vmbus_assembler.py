"""The assembler for guests without an operating system that talk to the VMBus: contact, offers, one open channel.

Source: Linux drivers/hv/connection.c, channel.c, ring_buffer.c. The guest polls its message slot and its ring.
"""

from __future__ import annotations

from struct import pack

from pyvmm.images.hyperv_assembler import PAYLOAD, HypervAssembler
from pyvmm.vmbus import protocol as p

RINGS = 0x210000
OUT, OUT_DATA, IN, IN_DATA = (RINGS + page * 0x1000 for page in range(4))
"""The channel's four pages: a header page and a data page for each direction."""
BUFFER = 0x220000
"""Where a received packet is copied: 16 bytes of header, then the payload."""
GPADL = 1
_DATA_SIZE = 0x1000
_MONITOR_PAGES = 0x203000, 0x204000
_WRITE, _READ = 0, 4  # offsets of a ring's indices in its header page


class VmbusAssembler(HypervAssembler):
    """Collects instructions. `connect` and `open_channel` post messages that `vmbus_data` places."""

    def connect(self) -> None:
        """Contact the bus, ask for the offers, and read messages until the last one has come."""
        self.enable_hyperv()
        self.post_message("contact")
        self.wait_for_message("version came")
        self.free_slot()
        self.post_message("request offers")
        self.label("next offer")
        self.wait_for_message("offer came")
        self.load("rbx", "rdi", PAYLOAD, 4)
        self.free_slot()
        self.compare("rbx", p.MessageType.ALL_OFFERS_DELIVERED)
        self.jump("next offer", "ne")

    def open_channel(self) -> None:
        """Lend the host the pages of the rings (a GPADL), and open the channel over them."""
        for message in ("gpadl", "open"):
            self.post_message(message)
            self.wait_for_message(f"{message} answered")
            self.free_slot()

    def vmbus_data(self, relid: int = 1) -> None:
        """Place the messages and the routines. 2 is the SINT for answers; the monitor pages are not used."""
        contact = p.InitiateContact(p.Version.WIN10_5_3, 0, 2, *_MONITOR_PAGES)
        self.message("contact", p.CONTACT_CONNECTION, contact.build())
        self.message("request offers", p.MESSAGE_CONNECTION, p.RequestOffers().build())
        pages = [RINGS // 0x1000 + n for n in range(4)]
        gpadl = p.GpadlHeader(relid, GPADL, 8 * 5, 1).build() + pack("<5Q", 4 * 0x1000, *pages)
        self.message("gpadl", p.MESSAGE_CONNECTION, gpadl)
        opened = p.OpenChannel(relid, relid, GPADL, 0, 2, bytes(120))  # page 2 begins the ring to the guest
        self.message("open", p.MESSAGE_CONNECTION, opened.build())
        self._send_routine(p.FIRST_SIGNAL_CONNECTION + relid)
        self._receive_routine()

    def send(self) -> None:
        """Send the packet at rsi, whose header and payload are rcx bytes. Changes most registers."""
        self.call("send packet")

    def receive(self) -> None:
        """Wait for a packet, and copy it to BUFFER. Changes most registers."""
        self.call("receive packet")

    def _send_routine(self, connection: int) -> None:
        self.label("send packet")
        self.move("rdi", OUT)
        self.load("rbx", "rdi", _WRITE, 4)
        self.move("r9", "rbx")
        self.label("copy out")
        self.load("rax", "rsi", 0)
        self._store_out()
        self.add("rsi", 8)
        self.subtract("rcx", 8)
        self.jump("copy out", "ne")
        self.move("rax", "r9")
        self.shift_left("rax", 32)
        self._store_out()  # the trailer: where the packet began
        self.store(_WRITE, "rbx", 4, base="rdi")
        self.barrier()
        self.signal(connection)
        self.back()

    def _store_out(self) -> None:
        """Store rax at index rbx of the ring, and move the index on."""
        self.move("r10", OUT_DATA)
        self.add("r10", "rbx")
        self.store(0, "rax", base="r10")
        self._advance("rbx", 8)

    def _receive_routine(self) -> None:
        self.label("receive packet")
        self.move("rdi", IN)
        self.load("rbx", "rdi", _READ, 4)
        self.label("ring empty")
        self.load("rax", "rdi", _WRITE, 4)
        self.compare("rax", "rbx")
        self.jump("ring empty", "e")
        self.move("r10", IN_DATA)
        self.add("r10", "rbx")
        self.load("rcx", "r10", 4, 2)  # the header's length, in units of 8 bytes
        self.move("rsi", BUFFER)
        self.label("copy in")
        self.move("r10", IN_DATA)
        self.add("r10", "rbx")
        self.load("rax", "r10", 0)
        self.store(0, "rax", base="rsi")
        self._advance("rbx", 8)
        self.add("rsi", 8)
        self.subtract("rcx", 1)
        self.jump("copy in", "ne")
        self._advance("rbx", 8)  # the trailer
        self.store(_READ, "rbx", 4, base="rdi")
        self.barrier()
        self.back()

    def _advance(self, register: str, size: int) -> None:
        self.add(register, size)
        self.both(register, _DATA_SIZE - 1)
