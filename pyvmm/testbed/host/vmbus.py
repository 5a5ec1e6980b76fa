"""Messages of the bus as the raw host sends them: any offer, any answer, and answers that never come.

The machine's own server goes on answering the guest; `withhold` and `change` act on its answers. What is sent here
changes nothing in the server: it does not know of an offer made by `offer`, and refuses what the guest asks for it.
A device that works comes from `add`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from pyvmm.testbed.host.device import Answers, RawDevice
from pyvmm.testbed.host.seams import MessageFilter
from pyvmm.vmbus import protocol
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.protocol import Message, MessageHeader, MessageType
from pyvmm.vmbus.states import Open, Opening, ServedChannel

if TYPE_CHECKING:
    from pyvmm.testbed.host.host import Host

RAW_CONNECTION = 0x2000
"""Connection of an `offer`, plus its relid: above those of the machine's channels."""


class Withheld:
    """Answers of one type that were kept from the guest. `messages` are their bytes, in order."""

    def __init__(self, vmbus: RawVmbus, kind: int) -> None:
        self.messages: list[bytes] = []
        self._vmbus = vmbus
        self._kind = kind

    def __len__(self) -> int:
        return len(self.messages)

    def release(self) -> None:
        """Send what was withheld so far, late."""
        messages, self.messages = self.messages, []
        for each in messages:
            self._vmbus.send(each)


class RawVmbus:
    """Messages of the bus. Relids are 1 to 2047 by the protocol; any u32 is sent."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._server = host.parts.bus.server

    # Messages

    def send(self, message: bytes | Message, *, vp: int | None = None) -> list[int]:
        """Post a message to the guest: a structure of `pyvmm.vmbus.protocol`, or bytes. `vp`: where the guest wants
        its messages, unless given. Returns as `synic.post`."""
        data = message if isinstance(message, bytes) else message.build()
        return self._host.synic.vmbus_message(data, vp=self.message_vp if vp is None else vp)

    def send_type(self, kind: int, body: bytes = b"", *, vp: int | None = None) -> list[int]:
        """Post a message of any type: the header of 8 bytes, then `body`."""
        return self.send(MessageHeader(kind).build() + body, vp=vp)

    @property
    def message_vp(self) -> int:
        """The VP on which the guest reads messages; 0 before its contact."""
        return int(getattr(self._server.state, "vp", 0))

    @property
    def received(self) -> list[bytes]:
        """Messages of the guest since the raw host was first used, oldest first."""
        return list(self._host.seams.messages)

    def requests(self, kind: int) -> list[bytes]:
        """Messages of the guest of one type."""
        return [each for each in self._host.seams.messages if int.from_bytes(each[:4], "little") == kind]

    def wait_for(self, kind: int, timeout: float = 10.0, *, since: int = 0) -> bytes:
        """Return the guest's message number `since` (from 0) of this type; wait for it. Raises TimedOut."""
        name = MessageType(kind).name if kind in MessageType.__members__.values() else str(kind)
        self._host.parts.until(lambda: len(self.requests(kind)) > since, timeout, f"message {name} of the guest")
        return self.requests(kind)[since]

    # Offers

    def offer(
        self,
        type: UUID | str = "hv-balloon",
        *,
        relid: int,
        instance: UUID | None = None,
        flags: int = 0,
        mmio_mib: int = 0,
        user_defined: bytes = b"",
        sub_channel: int = 0,
        monitor_id: int = 0,
        monitor_allocated: int = 0,
        dedicated: int = 1,
        connection_id: int | None = None,
    ) -> UUID:
        """Post an OFFER that the machine's server knows nothing of; returns the instance GUID, a new one by default.

        `type`: a GUID, or that of a device on the bus by its name.
        """
        made = instance or uuid4()
        connection = RAW_CONNECTION + relid if connection_id is None else connection_id
        self.send(
            protocol.OfferChannel(
                self._type(type),
                made,
                bytes(16),
                flags,
                mmio_mib,
                user_defined,
                sub_channel,
                0,
                relid,
                monitor_id=monitor_id,
                monitor_allocated=monitor_allocated,
                dedicated=dedicated,
                connection_id=connection & 0xFFFFFFFF,
            )
        )
        return made

    def offer_again(self, device: str | VmbusDevice = "hv-balloon", *, relid: int | None = None) -> int:
        """Post the OFFER of a device on the bus once more, under another relid if given; returns the relid."""
        served = self._served(device)
        number = served.relid if relid is None else relid
        self.offer(served.offer.type, relid=number, instance=served.offer.instance, flags=served.offer.flags)
        return number

    def rescind(self, relid: int) -> None:
        """Post a RESCIND for any relid, a number: `relid("heartbeat")` is a device's. Raises ValueError."""
        if not isinstance(relid, int):
            raise ValueError(f"{relid!r} is no relid: `host.vmbus.relid({relid!r})` is that of a device")
        self.send(protocol.Rescind(relid))

    def relid(self, device: str | VmbusDevice = "hv-balloon") -> int:
        """Return the relid of a device on the bus. Raises ValueError."""
        return self._served(device).relid

    def signal(self, relid: int) -> bool:
        """Signal a channel of the machine, open or not: on the VP that the guest chose for it, else on VP 0. False if
        the guest's SynIC is off."""
        served = self._server.channels.get(relid)
        state = served.state if served is not None else None
        return self._host.synic.signal(relid, vp=state.target_vp if isinstance(state, Open | Opening) else 0)

    def add(
        self,
        type: UUID | str = "hv-balloon",
        *,
        instance: UUID | None = None,
        name: str = "raw",
        flags: int = 0,
        user_defined: bytes = b"",
        answers: Answers | None = None,
    ) -> RawDevice:
        """Put a device without behaviour on the bus; its channel works. See RawDevice."""
        offer = Offer(name, self._type(type), instance or uuid4(), flags=flags, user_defined=user_defined)
        device = RawDevice(offer, answers)
        self._host.parts.bus.add(device)
        return device

    def remove(self, device: str | RawDevice) -> None:
        """Take a device off the bus as a well-behaved host does: RESCIND, then wait for the release."""
        self._host.parts.bus.remove(self._host.device(device))

    # Answers

    def all_offers(self) -> None:
        """Post ALL_OFFERS_DELIVERED."""
        self.send(protocol.AllOffersDelivered())

    def version_response(self, supported: int, connection_id: int = 0, *, state: int = 0) -> None:
        """Post a VERSION_RESPONSE, requested or not."""
        self.send(protocol.VersionResponse(supported, state, 0, connection_id))

    def gpadl_created(self, relid: int, gpadl: int, status: int = 0) -> None:
        """Post a GPADL_CREATED."""
        self.send(protocol.GpadlCreated(relid, gpadl, status))

    def gpadl_torndown(self, gpadl: int) -> None:
        """Post a GPADL_TORNDOWN."""
        self.send(protocol.GpadlTorndown(gpadl))

    def open_result(self, relid: int, open_id: int | None = None, status: int = 0) -> None:
        """Post an OPEN_RESULT; Linux's open id is the relid."""
        self.send(protocol.OpenResult(relid, relid if open_id is None else open_id, status))

    def modify_channel_response(self, relid: int, status: int = 0) -> None:
        """Post a MODIFYCHANNEL_RESPONSE."""
        self.send(protocol.ModifyChannelResponse(relid, status))

    def unload_response(self) -> None:
        """Post an UNLOAD_RESPONSE."""
        self.send(protocol.UnloadResponse())

    # The machine's own answers

    @contextmanager
    def filtered(self, each: MessageFilter) -> Iterator[None]:
        """Around what makes the machine's server answer: `each(message)` returns the bytes to send, None for none.

        Messages that the raw host sends are not filtered.
        """
        outgoing = self._host.seams.outgoing
        outgoing.append(each)
        try:
            yield
        finally:
            outgoing.remove(each)

    def withhold(self, kind: int, count: int | None = None) -> Withheld:
        """From now on keep the server's messages of a type from the guest: the next `count`, or all."""
        if count is not None and count < 1:
            raise ValueError(f"withhold {count} messages: at least 1")
        withheld = Withheld(self, kind)
        total = 0

        def take(message: bytes) -> bytes | None:
            nonlocal total
            if _kind(message) != kind:
                return message
            total += 1
            withheld.messages.append(message)
            if total == count:
                self._host.seams.outgoing.remove(take)
            return None

        self._host.seams.outgoing.append(take)
        return withheld

    def change(self, kind: int, changed: Callable[[bytes], bytes | None], count: int | None = None) -> None:
        """From now on let `changed(message)` replace the server's messages of a type: the next `count`, or all."""
        total = 0

        def replace(message: bytes) -> bytes | None:
            nonlocal total
            if _kind(message) != kind:
                return message
            total += 1
            if total == count:
                self._host.seams.outgoing.remove(replace)
            return changed(message)

        self._host.seams.outgoing.append(replace)

    def honest(self) -> None:
        """End all `withhold` and `change`."""
        self._host.seams.outgoing.clear()

    def _type(self, type: UUID | str) -> UUID:
        return type if isinstance(type, UUID) else self._host.device(type).offer.type

    def _served(self, device: str | VmbusDevice) -> ServedChannel:
        offer = self._host.device(device).offer
        served = self._server.offered.get(offer.key)
        if served is None:
            raise ValueError(f"{offer.name} is not offered")
        return served


def _kind(message: bytes) -> int:
    return int.from_bytes(message[:4], "little")
