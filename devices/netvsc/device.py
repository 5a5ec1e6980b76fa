"""The network card on its channels: NVSP messages, and the way of each packet to the card, its sender or receiver.

Closed --OPEN--> Opened --INIT of a served version--> Agreed --RECEIVE_BUFFER, SEND_BUFFER--> both ways usable
any --CLOSE of the primary--> Closed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.netvsc import events as trace
from pyvmm.devices.netvsc import nvsp, rndis
from pyvmm.devices.netvsc.buffers import SEND_SECTION_SIZE, ReceiveBuffer, SendBuffer
from pyvmm.devices.netvsc.card import PROMISCUOUS, Card
from pyvmm.devices.netvsc.offload import ETHERNET_SIZE
from pyvmm.devices.netvsc.receiver import Receiver
from pyvmm.devices.netvsc.sender import QUEUE_LIMIT, Sender
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.net.link import Link
from pyvmm.qapi import NetInfo, RxFilterInfo
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.packet import Packet, PacketFlag, PacketType, direct_views

DEFAULT_MTU = 1500
PACKETS_LIMIT = 64
"""Limit of frames in one packet of the guest. `card.PACKETS_PER_MESSAGE` is the limit that RNDIS announces."""
DIRECT_LIMIT = 1 << 17
"""Bytes that one packet may name: a large send has half as many."""
LEAVING_QUIET = 0.1
"""Seconds without a frame of the guest after which a card with an unplugged cable leaves. Linux stops sending when it
sees the cable unplugged; what it sends after the RESCIND is never completed, and it would wait for that for ever."""
_REQUESTED = int(PacketFlag.COMPLETION_REQUESTED)


class Netvsc(VmbusDevice):
    """A network card, connected to `link`; `lost(reason)` is called if the link ends unasked.

    `refused` counts what the guest sent against the rules in its packets.
    """

    OFFER: ClassVar[Offer] = Offer(
        "netvsc",
        type=UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e"),
        instance=UUID("8d1a0f3c-5c0e-4a53-9d6b-1f2e6e657430"),
    )
    OWN_COMPLETIONS: ClassVar[int] = QUEUE_LIMIT

    def __init__(self, link: Link, card: Card, *, lost: Callable[[str], object] = lambda reason: None) -> None:
        self.link = link
        self._lost = lost
        self.card = card
        self.channels: dict[int, Channel] = {}
        self.version = 0  # NVSP's; 0 before a driver has negotiated one
        self.mtu = DEFAULT_MTU
        self.refused = 0
        self.plugged = True  # the cable, as the user wants it
        self.promised = 0  # sub-channels offered at the guest's request
        self.receiver = Receiver(link, card, self.channels, lambda: self.number)
        self.sender = Sender(link, card.counters, lambda: self.number)
        self._send_buffer: SendBuffer | None = None
        self._leave: Callable[[], object] | None = None
        self._sent_before = -1  # frames of the guest when the leaving device looked last
        self._packets = 0
        self._update_link()
        link.start(self.receiver.frames_came, self.sender.room, self._link_ended)

    # The bus

    def opened(self, channel: Channel) -> None:
        self.channels[channel.sub_channel] = channel
        if not channel.sub_channel:
            self._forget()
        elif len(self.channels) == 1 + self.promised and self.version >= nvsp.VERSIONS[-1]:
            self.channels[0].send(nvsp.send_table(len(self.channels)))

    def closed(self, channel: Channel) -> None:
        self.sender.forget(channel)
        if channel.sub_channel:
            self.channels.pop(channel.sub_channel, None)
            self.receiver.forget(channel.sub_channel)
            return
        self._forget()
        self.channels.pop(0, None)

    def _forget(self) -> None:
        """Return to the state before a driver's first message."""
        self.version, self.mtu, self.promised = 0, DEFAULT_MTU, 0
        self._send_buffer = None
        self._leave = None
        self.receiver.revoke()
        self.card.restart()
        self._update_link()

    def leaving(self, done: Callable[[], object]) -> None:
        """Unplug the cable for the driver, then leave when it is quiet and everything is completed."""
        channel = self.channels.get(0)
        if channel is None:
            done()
            return
        self._leave = done
        self._update_link()
        self._sent_before = -1
        self._leave_if_quiet()

    def _leave_if_quiet(self) -> None:
        if self._leave is None or 0 not in self.channels:
            return
        busy = self.receiver.out or any(channel.outstanding for channel in self.channels.values())
        if not busy and (self._packets == self._sent_before or not self.card.filter):
            leave, self._leave = self._leave, None
            leave()
            return
        self._sent_before = self._packets
        self.channels[0].after(LEAVING_QUIET, self._leave_if_quiet)

    # The cable

    def set_plugged(self, plugged: bool) -> None:
        """Plug the cable in, or out, and indicate that to the driver."""
        self.plugged = plugged
        self._update_link()

    def _link_ended(self, reason: str) -> None:
        if trace.link_ended.on:
            trace.link_ended(self.number, reason)
        self._lost(reason)
        self._update_link()

    def _update_link(self) -> None:
        """Apply the state of cable and link, and tell the driver if it changed for it."""
        connected = self.plugged and self.link.alive and self._leave is None
        changed, self.card.connected = connected != self.card.connected, connected
        self.sender.off = self.receiver.off = not connected
        if not changed:
            return
        if not connected:
            self.sender.drop("the cable is unplugged")
        if trace.link_changed.on:
            trace.link_changed(self.number, "connected" if connected else "disconnected")
        if self.card.initialised and self.receiver.buffer is not None:
            status = rndis.Status.CONNECT if connected else rndis.Status.DISCONNECT
            self._answer(rndis.indicate(status))

    # Packets

    def packet(self, channel: Channel, packet: Packet) -> None:
        if packet.type == PacketType.COMPLETION:
            self.receiver.completed(packet.transaction_id)
            return
        if packet.type not in (PacketType.IN_BAND, PacketType.GPA_DIRECT):
            raise GuestProtocolError(f"netvsc: packet type {packet.type}")
        kind = nvsp.message_type(packet.payload)
        if kind == nvsp.Type.RNDIS_PACKET and self.version:
            self._rndis(channel, packet)
        elif channel.sub_channel or packet.type != PacketType.IN_BAND:
            raise GuestProtocolError(f"netvsc: message {kind} in a packet of type {packet.type}")
        else:
            answer = self._nvsp(kind, packet.payload, channel)
            if answer and packet.flags & _REQUESTED:
                channel.complete(packet.transaction_id, answer)

    def _rndis(self, channel: Channel, packet: Packet) -> None:
        """Handle an RNDIS_PACKET: frames, or a control message. It is completed whatever is wrong with it."""
        self._packets += 1
        wanted = packet.transaction_id if packet.flags & _REQUESTED else None
        try:
            kind, section, size = nvsp.parse_rndis(packet.payload)
            parts: list[memoryview] = []
            if section != nvsp.NO_SECTION:
                if self._send_buffer is None:
                    raise GuestProtocolError("netvsc: a section of no send buffer")
                parts += self._send_buffer.section(section, size)
            if packet.type == PacketType.GPA_DIRECT:
                parts += direct_views(packet, channel.memory, DIRECT_LIMIT)
            reader = rndis.Reader(parts)
            if kind == nvsp.DATA:
                self.sender.add(channel, wanted, reader.frames(PACKETS_LIMIT), self.mtu)
                return
            answer = self._control(reader)
        except GuestError as error:
            self._refuse(error)
            status = nvsp.Status.INVALID_RNDIS
            answer = None
        else:
            status = nvsp.Status.SUCCESS
        if wanted is not None:
            channel.complete(wanted, nvsp.COMPLETE[status])
        if answer is not None:
            self._answer(answer)

    def _answer(self, message: bytes) -> None:
        """Send an answer or an indication. The packet that asked for it is complete, so nothing is raised."""
        try:
            self.receiver.answer(message)
        except GuestError as error:
            self._refuse(error)

    def _refuse(self, error: GuestError) -> None:
        self.refused += 1
        if trace.refused.on:
            trace.refused(self.number, str(error))

    def _control(self, reader: rndis.Reader) -> bytes | None:
        if not 0 < reader.size <= rndis.CONTROL_LIMIT:
            raise GuestProtocolError(f"netvsc: a control message of {reader.size} bytes")
        message = reader.copy(0, reader.size)
        if trace.control_received.on and len(message) >= 12:
            kind, request = (int.from_bytes(message[at : at + 4], "little") for at in (0, 8))
            oid = int.from_bytes(message[12:16], "little")
            trace.control_received(self.number, _name(kind), oid, request)
        answer = self.card.control(message)
        if answer is not None and trace.control_answered.on:
            kind, request = (int.from_bytes(answer[at : at + 4], "little") for at in (0, 8))
            trace.control_answered(self.number, _name(kind), request, len(answer))
        return answer

    # NVSP

    def _nvsp(self, kind: int, payload: bytes, channel: Channel) -> bytes:
        """Handle a message of the negotiation; return its answer, if it has one."""
        if kind == nvsp.Type.INIT:
            return self._init(nvsp.Init.read(payload))
        if not self.version:
            raise GuestProtocolError(f"netvsc: message {kind} before a version is agreed")
        match kind:
            case nvsp.Type.NDIS_CONFIG:
                self._configure(nvsp.NdisConfig.read(payload))
            case nvsp.Type.NDIS_VERSION:
                nvsp.NdisVersion.read(payload)
            case nvsp.Type.RECEIVE_BUFFER:
                return self._take_receive_buffer(nvsp.LendBuffer.read(payload), channel)
            case nvsp.Type.SEND_BUFFER:
                return self._take_send_buffer(nvsp.LendBuffer.read(payload), channel)
            case nvsp.Type.REVOKE_RECEIVE_BUFFER:
                self.receiver.revoke()
                self._revoked("receive")
            case nvsp.Type.REVOKE_SEND_BUFFER:
                self.sender.drop("the send buffer is revoked")
                self._send_buffer = None
                self._revoked("send")
            case nvsp.Type.SUBCHANNEL:
                return self._offer_sub_channels(nvsp.Subchannels.read(payload), channel)
            case _:
                raise GuestProtocolError(f"netvsc: message {kind}")
        return b""

    def _init(self, message: nvsp.Init) -> bytes:
        version, status = message.newest, nvsp.Status.SUCCESS
        if version not in nvsp.VERSIONS or self.version:
            status = nvsp.Status.FAIL
            if trace.refused_version.on:
                trace.refused_version(self.number, version)
        else:
            self.version = version
            if trace.negotiated.on:
                major, minor = (version & 0xFFFF, 0) if version == nvsp.VERSIONS[0] else (version >> 16, version & 1)
                trace.negotiated(self.number, major, minor)
        return nvsp.InitComplete(version, 34, status).message()

    def _configure(self, message: nvsp.NdisConfig) -> None:
        if self.receiver.buffer is not None:
            raise GuestProtocolError("netvsc: NDIS_CONFIG after the receive buffer")
        self.mtu = max(68, min(message.mtu - ETHERNET_SIZE, 65535 - ETHERNET_SIZE))
        if trace.configured.on:
            trace.configured(self.number, self.mtu, message.capabilities)

    def _take_receive_buffer(self, message: nvsp.LendBuffer, channel: Channel) -> bytes:
        section = max(2048, self.mtu + ETHERNET_SIZE + 4 + rndis.FRAME_OFFSET + 7 & ~7)
        try:
            if self.receiver.buffer is not None:
                raise GuestProtocolError("netvsc: a second receive buffer")
            buffer = ReceiveBuffer(channel.gpadl(message.gpadl), channel.memory, section)
        except GuestError as error:
            self._refuse(error)
            return nvsp.ReceiveBufferComplete(nvsp.Status.FAIL, 0, 0, 0, 0, 0).message()
        self.receiver.lend(buffer)
        if trace.buffer_lent.on:
            trace.buffer_lent(self.number, "receive", buffer.size, section)
        end = buffer.sections * section
        return nvsp.ReceiveBufferComplete(nvsp.Status.SUCCESS, 1, 0, section, buffer.sections, end).message()

    def _take_send_buffer(self, message: nvsp.LendBuffer, channel: Channel) -> bytes:
        try:
            if self._send_buffer is not None:
                raise GuestProtocolError("netvsc: a second send buffer")
            self._send_buffer = SendBuffer(channel.gpadl(message.gpadl), channel.memory)
        except GuestError as error:
            self._refuse(error)
            return nvsp.SendBufferComplete(nvsp.Status.FAIL, 0).message()
        if trace.buffer_lent.on:
            trace.buffer_lent(self.number, "send", self._send_buffer.size, SEND_SECTION_SIZE)
        return nvsp.SendBufferComplete(nvsp.Status.SUCCESS, SEND_SECTION_SIZE).message()

    def _revoked(self, which: str) -> None:
        if trace.buffer_revoked.on:
            trace.buffer_revoked(self.number, which)

    def _offer_sub_channels(self, message: nvsp.Subchannels, channel: Channel) -> bytes:
        """Offer what is asked for and allowed. Linux waits until as many channels as the answer says are open."""
        if message.operation != 1 or self.version < nvsp.VERSION_5 or self.promised:
            return nvsp.Subchannels(nvsp.Status.FAIL, 0).message()
        for number in range(1, min(message.count, self.card.queues - 1) + 1):
            try:
                channel.offer_sub_channel(number)
            except GuestProtocolError:  # the bus is full
                break
            self.promised = number
        if trace.sub_channels.on:
            trace.sub_channels(self.number, self.promised)
        return nvsp.Subchannels(nvsp.Status.SUCCESS, self.promised).message()

    # For people

    def info(self, name: str) -> NetInfo:
        """Return the card's state for the monitor."""
        counters = self.card.counters
        return {
            "id": name,
            "mac": self.card.address.hex(":"),
            "kind": self.link.kind,
            "place": self.link.place,
            "link": "up" if self.card.connected else "down",
            "up": bool(self.card.filter),
            "mtu": self.mtu,
            "channels": len(self.channels),
            "received": counters.received,
            "received-bytes": counters.received_bytes,
            "sent": counters.sent,
            "sent-bytes": counters.sent_bytes,
            "dropped": counters.dropped + counters.send_dropped,
            "errors": counters.send_errors + self.refused,
        }

    def rx_filter(self, name: str) -> RxFilterInfo:
        """Return which frames pass to the guest, as QEMU's query-rx-filter."""
        promiscuous, up = bool(self.card.filter & PROMISCUOUS), bool(self.card.filter)
        return {
            "name": name,
            "promiscuous": promiscuous,
            "multicast": "all" if up else "none",
            "unicast": "all" if promiscuous else "normal" if up else "none",
            "vlan": "all",
            "broadcast-allowed": up,
            "multicast-overflow": False,
            "unicast-overflow": False,
            "main-mac": self.card.address.hex(":"),
            "vlan-table": [],
            "unicast-table": [],
            "multicast-table": [],
        }


def _name(kind: int) -> str:
    known = rndis.Type.__members__.values()
    plain = kind & ~rndis.COMPLETE
    return rndis.Type(plain).name.lower() if plain in known else f"{kind:#x}"
