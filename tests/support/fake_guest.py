"""A guest that plays hv_vmbus and a driver against a real bus, real rings and real guest memory, with a fake clock.

    guest = FakeGuest()                      # tests/guest/conftest.py has a fixture `guest`
    driver = guest.open(device)              # add to the bus; contact, offers, gpadl, open: as Linux does
    guest.send(bytes)                        # driver -> device, in-band; signals if the rule says so, runs the loop
    first, second = guest.take(Body, 2)      # device -> driver: exactly 2 packets are there; parsed as Body
    payload = guest.take_bytes()             # one packet's payload, padded to 8 bytes
    guest.advance(seconds=4.5)               # move the clock, timers and loop run
    guest.pause(seconds=42)                  # the machine is paused for so long: the clock moves, the guest does not
    guest.close(); guest.reopen()            # driver unbound and bound again
    guest.unload(); guest.connect()          # hv_vmbus removed and loaded again
    guest.reset()                            # machine reset

`guest.take`, `send`, `answer` speak for the driver opened last; each driver has them too (`driver.send(...)`).
For integration services (IC framing: heartbeat, shutdown, time sync):

    guest.open(Heartbeat()).accept_versions()   # takes the negotiate request, answers with the first of the lists
    guest.take(HeartbeatBody, 2)                # IC headers are stripped (driver.last_ic keeps the latest)
    guest.answer(HeartbeatBody(8))              # a response to the latest request taken, status 0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from struct import pack, unpack_from
from typing import Any, Protocol, Self, TypeVar, get_args

from pyvmm.guest_time import GuestTimers
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.protocol import MessageType
from tests.support.fake_clock import FakeLoop
from tests.support.fake_partition import FakePartition
from tests.support.fake_ring import GuestPacket, GuestRing


class Buildable(Protocol):
    def build(self) -> bytes: ...


class Parsable(Protocol):
    @classmethod
    def parse(cls, data: bytes, /) -> Self: ...


T = TypeVar("T", bound=Parsable)
M = TypeVar("M", bound=p.Message)

_ANSWERS: dict[int, type] = {kind.TYPE: kind for kind in reversed(get_args(p.HostMessage))}
"""By type; of two that share one, the older, which the newer begins like."""


@dataclass
class FakeDriver:
    """A driver with an open channel."""

    guest: FakeGuest
    device: VmbusDevice
    offer: p.OfferChannel
    gpadl: int
    outgoing: GuestRing  # guest to host
    incoming: GuestRing  # host to guest
    target_vp: int = 0
    is_ic: bool = False
    last_ic: bytes = b""  # the 28 bytes of pipe and IC header of the latest request taken
    signals: int = field(default=0)  # events this channel got

    def send(self, payload: bytes, **how: Any) -> Self:
        """Write one packet, signal if the host wants it, let the host work. `how` is what `GuestRing.put` takes:
        `type`, `flags`, `transaction_id`, `descriptor`."""
        signal = self.outgoing.put(payload, **how)
        assert signal is not None, "the guest's ring is full"
        if signal:
            self.signal()
        self.guest.loop.run()
        return self

    def send_message(self, message: Buildable) -> Self:
        return self.send(message.build())

    def signal(self) -> None:
        """HvSignalEvent for the channel."""
        assert self.guest.partition.hypercall_signal(self.offer.connection_id) == 0

    def take_packet(self) -> GuestPacket | None:
        """The next packet, or None. Signals the host if it waits for room."""
        self.guest.partition.clear_flag(self.target_vp, self.offer.relid)
        taken = self.incoming.take()
        if taken is None:
            return None
        packet, signal = taken
        assert 16 + len(packet.payload) <= self.device.offer.packet_limit, "a packet longer than the driver reads"
        if signal:
            self.signal()
            self.guest.loop.run()
        return packet

    def take_bytes(self) -> bytes:
        """The payload of the next in-band packet, which must be there."""
        packet = self.take_packet()
        assert packet is not None, f"nothing to take from {self.device.offer.name}"
        assert packet.type == 6, f"packet type {packet.type}"
        if not self.is_ic:
            return packet.payload
        self.last_ic = packet.payload[:28]
        size = unpack_from("<H", packet.payload, 18)[0]
        return packet.payload[28 : 28 + size]

    def take(self, kind: type[T], count: int = 1) -> list[T]:
        """`count` packets parsed as `kind`; there must be exactly so many."""
        taken = [kind.parse(self.take_bytes()) for _ in range(count)]
        self.expect_nothing()
        return taken

    def expect_nothing(self) -> Self:
        """The host must not have sent more."""
        rest = self.incoming.used()
        assert not rest, f"{rest} more bytes in the ring of {self.device.offer.name}"
        return self

    def answer(self, body: Buildable | bytes, *, status: int = 0) -> Self:
        """Send a body back: as the response to the latest IC request, or as it is on other channels."""
        data = body if isinstance(body, bytes) else body.build()
        if not self.is_ic:
            return self.send(data)
        pipe_flags, _, framework, kind, version, _ = unpack_from("<IIIHIH", self.last_ic)
        transaction = self.last_ic[24]
        head = pack("<IHIHIBBH", framework, kind, version, len(data), status, transaction, 1 | 4, 0)
        return self.send(pack("<II", pipe_flags, len(head) + len(data)) + head + data)

    def accept_versions(self) -> Self:
        """Answer the IC negotiate request with the first framework and message version offered."""
        self.is_ic = True
        offered = self.take_bytes()
        frameworks, messages, _ = unpack_from("<HHI", offered)
        assert frameworks and messages, "no versions offered"
        versions = [offered[at : at + 4] for at in range(8, 8 + 4 * (frameworks + messages), 4)]
        return self.answer(pack("<HHI", 1, 1, 0) + versions[0] + versions[frameworks])

    @property
    def channel(self) -> Channel:
        """The host's side of it."""
        channel = self.guest.bus.channel(self.device, self.offer.sub_channel)
        assert channel is not None, f"{self.device.offer.name} is not open"
        return channel


class FakeGuest:
    """See the module's docstring. `version` is what the guest asks for, the other arguments make the machine."""

    def __init__(
        self,
        *,
        vp_count: int = 1,
        memory_mib: int = 16,
        version: int = 0x50003,
        max_version: int = p.LATEST_VERSION,
        loop: Any = None,
    ) -> None:
        self.loop = FakeLoop() if loop is None else loop
        self.memory = GuestMemory.flat(memory_mib << 20)
        self.partition = FakePartition(vp_count)
        self.time = GuestTimers(self.loop)
        self.bus = Vmbus(self.time, self.memory, self.partition, max_version)
        self.partition.on_message = self._on_message
        self.partition.on_event = self._on_event
        self.version = version
        self.message_connection = 0
        self.connected = False
        self.inbox: list[tuple[int, bytes]] = []  # (vp, message) not looked at yet
        self.offers: list[p.OfferChannel] = []
        self.drivers: list[FakeDriver] = []
        frames = list(range(256, memory_mib << 8))
        Random(1).shuffle(frames)  # rings lie scattered
        self._frames = frames
        self._next_gpadl = 0xE1E10  # as Linux

    # Messages

    def post(self, message: Buildable | bytes, connection: int | None = None) -> int:
        """HvPostMessage; the hypercall's status. The loop does not run yet."""
        data = message if isinstance(message, bytes) else message.build()
        return self.partition.hypercall_post(self.message_connection if connection is None else connection, data)

    def request(self, message: Buildable | bytes, connection: int | None = None) -> None:
        """Post, which must succeed, and let the host work."""
        status = self.post(message, connection)
        assert status == 0, f"hypercall status {status:#x}"
        self.loop.run()

    def expect(self, kind: type[M]) -> M:
        """The next message, which must be of this kind."""
        assert self.inbox, f"no message; expected {kind.__name__}"
        _, data = self.inbox.pop(0)
        found = _ANSWERS[int.from_bytes(data[:4], "little")]
        assert found is kind, f"expected {kind.__name__}, got {found.__name__}"
        return found.parse(data)

    def _on_message(self, vp: int, payload: bytes) -> None:
        self.inbox.append((vp, payload))

    def _on_event(self, vp: int, flag: int) -> None:
        for driver in self.drivers:
            if driver.offer.relid == flag:
                assert driver.target_vp == vp, f"event of channel {flag} on VP {vp}, not {driver.target_vp}"
                driver.signals += 1

    # hv_vmbus

    def contact(self, version: int | None = None, *, vp: int = 0, connection: int | None = None) -> p.VersionResponse:
        """INITIATE_CONTACT; the answer, whatever it says."""
        version = self.version if version is None else version
        if connection is None:
            connection = 4 if version >= 0x50000 else 1
        target = 2 if version >= 0x50000 else 0x1000
        self.request(p.InitiateContact(version, vp, target, 0x2000, 0x3000), connection)
        response = self.expect(p.VersionResponse)
        if response.supported:
            self.message_connection = response.connection_id if version >= 0x50000 else 1
        return response

    def request_offers(self) -> list[p.OfferChannel]:
        """REQUEST_OFFERS; what is offered."""
        self.request(p.RequestOffers())
        self.offers = []
        while int.from_bytes(self.inbox[0][1][:4], "little") == MessageType.OFFER:
            self.offers.append(self.expect(p.OfferChannel))
        self.expect(p.AllOffersDelivered)
        return self.offers

    def connect(self, *, vp: int = 0) -> Self:
        """What loading hv_vmbus does: contact and offers."""
        self.inbox.clear()
        self.drivers = []
        assert self.contact(vp=vp).supported, f"version {self.version:#x} refused"
        self.request_offers()
        self.connected = True
        return self

    def unload(self) -> Self:
        """UNLOAD, as before kexec: channels are not closed first."""
        self.request(p.Unload())
        self.expect(p.UnloadResponse)
        self._forget()
        return self

    def reset(self) -> Self:
        """Machine reset: nothing is said, the host forgets."""
        self.bus.reset()
        self.loop.run()
        self._forget()
        self.inbox.clear()
        return self

    def _forget(self) -> None:
        self.connected = False
        self.drivers = []
        self.partition.flags.clear()

    # Drivers

    def pages(self, count: int) -> list[int]:
        """Fresh pages, scattered."""
        taken, self._frames = self._frames[:count], self._frames[count:]
        return [frame * PAGE_SIZE for frame in taken]

    def lend(self, relid: int, pages: list[int], *, status: int = 0) -> int:
        """Establish a GPADL; its handle."""
        handle = self._next_gpadl
        self._next_gpadl += 1
        for message in gpadl_messages(relid, handle, pages):
            self.request(message)
        created = self.expect(p.GpadlCreated)
        assert (created.relid, created.gpadl) == (relid, handle)
        assert bool(created.status) == bool(status), f"GPADL_CREATED status {created.status:#x}"
        return handle

    def skim(self) -> Self:
        """Keep the offers among the messages that were not looked at, and forget the others."""
        self.offers += [p.OfferChannel.parse(m) for _, m in self.inbox if m[0] == MessageType.OFFER]
        self.inbox.clear()
        return self

    def find_offer(self, device: VmbusDevice, sub_channel: int = 0) -> p.OfferChannel:
        """The offer of a device, from what came since REQUEST_OFFERS too."""
        while self.inbox and int.from_bytes(self.inbox[0][1][:4], "little") == MessageType.OFFER:
            self.offers.append(self.expect(p.OfferChannel))
        name = device.offer.instance, sub_channel
        found = [o for o in self.offers if (o.instance, o.sub_channel) == name]
        assert found, f"{device.offer.name} was not offered"
        return found[-1]

    def open(
        self,
        device: VmbusDevice,
        *,
        ring_pages: int = 5,
        receive_pages: int | None = None,
        target_vp: int = 0,
        sub_channel: int = 0,
        user_data: bytes = b"",
    ) -> FakeDriver:
        """Bind a driver: rings of `ring_pages` each way (header page included), channel opened. `receive_pages`: of
        the ring that the guest reads, if it is of another size."""
        if device not in self.bus.devices():
            self.bus.add(device)
            self.loop.run()
        if not self.connected:
            self.connect()
        offer = self.find_offer(device, sub_channel)
        pages = self.pages(ring_pages + (ring_pages if receive_pages is None else receive_pages))
        gpadl = self.lend(offer.relid, pages)
        rings = [GuestRing(self.memory, pages[:ring_pages]), GuestRing(self.memory, pages[ring_pages:])]
        driver = FakeDriver(self, device, offer, gpadl, *rings, target_vp=target_vp)
        self.drivers.append(driver)
        self.request(p.OpenChannel(offer.relid, offer.relid, gpadl, target_vp, ring_pages, user_data))
        result = self.expect(p.OpenResult)
        assert (result.relid, result.open_id, result.status) == (offer.relid, offer.relid, 0)
        return driver

    @property
    def driver(self) -> FakeDriver:
        """The driver opened last."""
        assert self.drivers, "no driver is open"
        return self.drivers[-1]

    def close(self, driver: FakeDriver | None = None) -> Self:
        """Unbind: CLOSE, then take the GPADL back."""
        driver = driver or self.driver
        self.request(p.CloseChannel(driver.offer.relid))
        self.request(p.GpadlTeardown(driver.offer.relid, driver.gpadl))
        torndown = self.expect(p.GpadlTorndown)
        assert torndown.gpadl == driver.gpadl
        self.drivers.remove(driver)
        return self

    def reopen(self) -> FakeDriver:
        """Unbind the driver opened last and bind it again."""
        device = self.driver.device
        self.close()
        return self.open(device)

    def accept_rescind(self, driver: FakeDriver | None = None) -> Self:
        """What Linux does on RESCIND: CLOSE if open, then RELID_RELEASED."""
        rescind = self.expect(p.Rescind)
        for driver in [d for d in self.drivers if d.offer.relid == rescind.relid]:
            self.request(p.CloseChannel(rescind.relid))
            self.drivers.remove(driver)
        self.offers = [o for o in self.offers if o.relid != rescind.relid]
        self.request(p.RelidReleased(rescind.relid))
        return self

    # The driver opened last

    def send(self, payload: bytes, **how: int) -> FakeDriver:
        return self.driver.send(payload, **how)

    def send_message(self, message: Buildable) -> FakeDriver:
        return self.driver.send_message(message)

    def take(self, kind: type[T], count: int = 1) -> list[T]:
        return self.driver.take(kind, count)

    def take_bytes(self) -> bytes:
        return self.driver.take_bytes()

    def answer(self, body: Buildable | bytes, *, status: int = 0) -> FakeDriver:
        return self.driver.answer(body, status=status)

    def expect_nothing(self) -> FakeDriver:
        return self.driver.expect_nothing()

    def advance(self, seconds: float) -> Self:
        """Move the clock; timers that come due and posted work run."""
        self.loop.advance(seconds)
        return self

    def pause(self, seconds: float) -> Self:
        """The machine is paused for so long, and runs again."""
        self.time.freeze()
        self.loop.advance(seconds)
        self.time.thaw()
        return self


def gpadl_messages(relid: int, handle: int, pages: list[int]) -> list[bytes]:
    """GPADL_HEADER and BODYs for one range of whole pages, cut as Linux cuts them."""
    words = [len(pages) * PAGE_SIZE, *(page // PAGE_SIZE for page in pages)]  # offset 0 in the upper half
    first, rest = words[:27], words[27:]
    head = p.GpadlHeader(relid, handle, 8 * len(words), 1).build()
    messages = [head + pack(f"<{len(first)}Q", *first)]
    for at in range(0, len(rest), 28):
        part = rest[at : at + 28]
        messages.append(p.GpadlBody(0, handle).build() + pack(f"<{len(part)}Q", *part))
    return messages
