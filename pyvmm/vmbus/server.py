"""The VMBus server: handles each message of the guest and determines the answer. No I/O: actions go to a queue.

Source: Linux drivers/hv/connection.c and channel_mgmt.c for the guest's side; OpenVMM vmbus_server for the host's.

    connection   Disconnected --contact, version served--> Contacted --REQUEST_OFFERS--> Serving
                 any --contact, version not served / UNLOAD / reset--> Disconnected
    channel      Hidden --offered--> Offered --OPEN--> Opening --rings made--> Open --CLOSE--> Offered
                                                              --no rings--> Offered
                 Offered, Opening, Open --device removed--> Rescinded --RELID_RELEASED--> gone
                 any --contact / UNLOAD / reset--> Hidden (Rescinded, and sub-channels: gone)
    sub-channels exist while their primary is Open: its CLOSE and its removal rescind them, before itself

`receive` is the message entry: it never raises for a guest's error, but counts it in `refused`. A request that has
an answer gets one even when it is refused, because Linux waits for most of them without a time limit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import assert_never
from uuid import UUID

from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.memory import GuestMemory
from pyvmm.trace import Event
from pyvmm.transitions import check
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.channel_table import ChannelTable
from pyvmm.vmbus.gpadl import WORD_SIZE, Gpadl, GpadlRefused, GpadlTable
from pyvmm.vmbus.offer import Offer
from pyvmm.vmbus.protocol import MessageType, Status, Version
from pyvmm.vmbus.states import (
    CHANNEL,
    CONNECTION,
    Action,
    BusConnected,
    ChannelState,
    CloseRings,
    ConnectionState,
    Contacted,
    Disconnected,
    DropMessages,
    Gone,
    Hidden,
    Offered,
    Open,
    Opened,
    Opening,
    OpenRings,
    Post,
    Rescinded,
    ServedChannel,
    Serving,
)


class Server:
    """State of one guest's bus. Used on the loop thread. After each call perform `actions` in order."""

    def __init__(self, memory: GuestMemory, *, vp_count: int = 1, max_version: int = protocol.LATEST_VERSION) -> None:
        self.actions: deque[Action] = deque()
        self.refused: Counter[str] = Counter()
        self.state: ConnectionState = Disconnected()
        self._table = ChannelTable()
        self.channels = self._table.by_relid
        self.offered = self._table.by_key
        self.gpadls = GpadlTable(memory)
        self.monitor_page = 0
        """Address of the guest's monitor page, 0 for none."""
        self.on_unload: Callable[[], None] = lambda: None
        """Called when the guest's kernel says that it leaves: for another one, a crash kernel, or a suspension."""
        self.on_contact: Callable[[], None] = lambda: None
        """Called at a kernel's contact, before it is answered."""
        self.on_connect: Callable[[UUID, UUID], bool] = lambda endpoint, service: False
        """Called at an hvsock connection request of the guest. Returns whether it was taken: an offer or
        `refuse_connect` follows then."""
        self._vp_count = vp_count
        self._versions = frozenset(int(v) for v in Version if v <= max_version)

    # The host's side

    def add(self, offer: Offer, device_id: int = 0) -> ServedChannel:
        """Offer a channel: at once if the guest has requested offers, else then. Raises ConfigError on a full bus.

        A channel that was just removed is offered again only after the guest has released the old relid.
        """
        channel = self._table.add(offer, device_id)
        if channel.relid and isinstance(self.state, Serving):
            self._offer(channel)
        return channel

    def remove(self, channel: ServedChannel) -> None:
        """Remove a channel, rescinding its offer if the guest has it; a primary's sub-channels go first."""
        for each in self._table.sub_channels(channel):
            self.remove(each)
        if not self._table.remove(channel):
            return
        if isinstance(channel.state, Hidden):
            self._release(channel)
        elif not isinstance(channel.state, Rescinded):
            if trace.rescind.on:
                trace.rescind(channel.relid, channel.offer.name)
            self._close(channel)
            self._enter_channel(channel, Rescinded())
            self._post(protocol.Rescind(channel.relid))

    def open_done(self, channel: ServedChannel, status: int) -> None:
        """Handle the result of OpenRings: `status` is 0, or the reason why there are no rings."""
        match channel.state:
            case Opening(open_id, gpadl, target_vp):
                if status:
                    self._enter_channel(channel, Offered())
                    self._open_result(channel.relid, open_id, status)
                else:
                    self._enter_channel(channel, Open(gpadl, target_vp))
                    self._open_result(channel.relid, open_id, status)
                    self.actions.append(Opened(channel))
            case _:
                pass  # closed or rescinded since

    def refuse_connect(self, endpoint: UUID, service: UUID) -> None:
        """Refuse an hvsock connection of the guest. Linux does not handle the answer: its connect() times out."""
        self._post(protocol.TlConnectResult(endpoint, service, Status.CONNECTION_REFUSED))

    def reset(self, reason: str) -> None:
        """Return to the initial state; devices stay and will be offered again under their old relids."""
        if trace.reset.on:
            trace.reset(reason)
        self.actions.append(DropMessages())
        self._enter(Disconnected())
        self.monitor_page = 0
        self.gpadls.clear()
        for channel in self.channels.values():
            self._close(channel)
            if not isinstance(channel.state, Rescinded):
                self._enter_channel(channel, Hidden())
        self.actions.extend(map(Gone, self._table.reset_relids()))

    # The guest's side

    def receive(self, data: bytes, connection_id: int) -> None:
        """Handle one message that came over `connection_id`."""
        kind = int.from_bytes(data[:4], "little")
        if trace.process_incoming_message.on:
            trace.process_incoming_message(kind)
        try:
            self._receive(protocol.parse(data), connection_id)
        except GuestError as error:
            name = MessageType(kind).name if kind in MessageType.__members__.values() else "UNKNOWN"
            self.refused[name] += 1
            if trace.message_refused.on:
                trace.message_refused(kind, str(error))

    def _receive(self, message: protocol.GuestMessage, connection_id: int) -> None:
        if isinstance(message, protocol.InitiateContact):
            self.on_contact()
            self._initiate_contact(message, connection_id)
            return
        if isinstance(message, protocol.Unload):
            self._unload()
            return
        if isinstance(self.state, Disconnected):
            raise GuestProtocolError("not connected")
        expected = self._message_connection(self.state.version)
        if connection_id != expected:
            raise GuestProtocolError(f"came over connection {connection_id}, agreed on {expected}")
        if self.state.version < message.SINCE:
            raise GuestProtocolError(f"{message.TYPE.name} in version {self.state.version:#x}")
        match message:
            case protocol.RequestOffers():
                self._request_offers()
            case protocol.OpenChannel():
                self._open_channel(message, self.state.version)
            case protocol.CloseChannel():
                self._close_channel(message)
            case protocol.GpadlHeader():
                self._gpadl_header(message)
            case protocol.GpadlBody():
                self._gpadl_body(message)
            case protocol.GpadlTeardown():
                self._gpadl_teardown(message)
            case protocol.RelidReleased():
                self._relid_released(message)
            case protocol.ModifyChannel():
                self._modify_channel(message)
            case protocol.TlConnectRequest():
                self._tl_connect(message)
            case _:
                assert_never(message)

    def _initiate_contact(self, message: protocol.InitiateContact, connection_id: int) -> None:
        version = message.version
        if trace.initiate_contact.on:
            pages = message.monitor_page1, message.monitor_page2, message.target
            trace.initiate_contact(version >> 16, version & 0xFFFF, message.target_vp, *pages)
        self.reset("contact")
        vp = message.target_vp if version >= Version.WIN8_1 else 0
        modern = version >= Version.WIN10_5_0
        try:
            if version not in self._versions:
                raise GuestProtocolError(f"version {version >> 16}.{version & 0xFFFF} is not served")
            if vp >= self._vp_count:
                raise GuestProtocolError(f"messages wanted on VP {vp} of {self._vp_count}")
            if connection_id != (protocol.CONTACT_CONNECTION if modern else protocol.CONTACT_CONNECTION_OLD):
                raise GuestProtocolError(f"version {version:#x} over connection {connection_id}")
            if modern and message.sint != protocol.SINT:
                raise GuestProtocolError(f"messages wanted on SINT {message.sint}, only {protocol.SINT} is served")
        except GuestProtocolError:
            self._version_response(version, vp if vp < self._vp_count else 0, 0, 0)
            raise
        self._enter(Contacted(version, vp))
        self.monitor_page = message.monitor_page2
        self.actions.append(BusConnected())  # before the answer: the guest may open channels as soon as it has that
        self._version_response(version, vp, 1, self._message_connection(version) if modern else version)

    def _version_response(self, version: int, vp: int, supported: int, connection_id: int) -> None:
        if trace.version_response.on:
            trace.version_response(version >> 16, version & 0xFFFF, supported, connection_id)
        fields = supported, 0, 0, connection_id
        response: protocol.VersionResponse | protocol.VersionResponseFeatures
        if supported and version >= protocol.VersionResponseFeatures.SINCE:
            response = protocol.VersionResponseFeatures(*fields, feature_flags=0)  # we have none of the features
        else:
            response = protocol.VersionResponse(*fields)
        self.actions.append(Post(vp, response.build()))

    @staticmethod
    def _message_connection(version: int) -> int:
        modern = version >= Version.WIN10_5_0
        return protocol.MESSAGE_CONNECTION if modern else protocol.CONTACT_CONNECTION_OLD

    def _unload(self) -> None:
        """Handle UNLOAD, which may come without CLOSE (kexec, crash). Linux waits for the answer."""
        if trace.unload.on:
            trace.unload(sum(isinstance(c.state, Open) for c in self.channels.values()), len(self.gpadls.lists))
        self.on_unload()
        vp = 0 if isinstance(self.state, Disconnected) else self.state.vp
        self.reset("unload")
        self.actions.append(Post(vp, protocol.UnloadResponse().build()))

    def _request_offers(self) -> None:
        if not isinstance(self.state, Contacted):
            raise GuestProtocolError("offers were requested before")
        self._enter(Serving(self.state.version, self.state.vp))
        for channel in self.channels.values():
            self._offer(channel)
        self._post(protocol.AllOffersDelivered(), trace.terminate_offers)

    def _open_channel(self, message: protocol.OpenChannel, version: int) -> None:
        if trace.open_channel.on:
            trace.open_channel(message.relid, message.ring_gpadl, message.target_vp)
        try:
            channel = self._table.known(message.relid)
            if not isinstance(channel.state, Offered):
                raise GuestProtocolError(f"OPEN while {channel.state}")
            gpadl = self.gpadls.get(message.ring_gpadl, message.relid)
            if not self._may_signal(message.target_vp):
                raise GuestProtocolError(f"OPEN with events to VP {message.target_vp} of {self._vp_count}")
            pages, split = gpadl.ring_pages(), message.receive_offset
            if not 2 <= split <= len(pages) - 2:
                raise GuestProtocolError(f"OPEN with the receiving ring at page {split} of {len(pages)}")
        except GuestProtocolError as error:
            if trace.open_refused.on:
                trace.open_refused(message.relid, str(error))
            self._open_result(message.relid, message.open_id, Status.INVALID_PARAMETER)
            raise
        self._enter_channel(channel, Opening(message.open_id, gpadl.id, message.target_vp))
        self.actions.append(OpenRings(channel, pages[:split], pages[split:], version, message.user_data))

    def _open_result(self, relid: int, open_id: int, status: int) -> None:
        self._post(protocol.OpenResult(relid, open_id, status), trace.channel_open, relid, status)

    def _close_channel(self, message: protocol.CloseChannel) -> None:
        if trace.close_channel.on:
            trace.close_channel(message.relid)
        channel = self._table.known(message.relid)
        match channel.state:
            case Open() | Opening():
                self._close(channel)
                self._enter_channel(channel, Offered())
                # Linux's netvsc expects it: it closes and opens its primary channel for a new number of them.
                for each in self._table.sub_channels(channel):
                    self.remove(each)
            case Rescinded():
                pass  # Linux closes what it had open when it sees the RESCIND; we closed it then
            case state:
                raise GuestProtocolError(f"CLOSE while {state}")

    def _gpadl_header(self, message: protocol.GpadlHeader) -> None:
        if trace.gpadl_header.on:
            trace.gpadl_header(message.gpadl, max(0, message.range_bytes // WORD_SIZE - message.range_count))
        try:
            channel = self.channels.get(message.relid)
            if channel is None or isinstance(channel.state, Hidden | Rescinded):
                reason = f"channel {message.relid} is not there"
                raise GpadlRefused(message.relid, message.gpadl, Status.INVALID_PARAMETER, reason)
            made = self.gpadls.begin(message)
        except GpadlRefused as error:
            self._gpadl_refused(error)
            raise
        if made is not None:
            self._gpadl_created(made)

    def _gpadl_body(self, message: protocol.GpadlBody) -> None:
        if trace.gpadl_body.on:
            trace.gpadl_body(message.gpadl)
        try:
            made = self.gpadls.extend(message)
        except GpadlRefused as error:
            self._gpadl_refused(error)
            raise
        if made is not None:
            self._gpadl_created(made)

    def _gpadl_created(self, gpadl: Gpadl) -> None:
        self._post(protocol.GpadlCreated(gpadl.relid, gpadl.id, Status.SUCCESS), trace.gpadl_created, gpadl.id)

    def _gpadl_refused(self, error: GpadlRefused) -> None:
        if trace.gpadl_refused.on:
            trace.gpadl_refused(error.gpadl, str(error))
        self._post(protocol.GpadlCreated(error.relid, error.gpadl, error.status))

    def _gpadl_teardown(self, message: protocol.GpadlTeardown) -> None:
        """Tear down a GPADL. While an open channel uses it the answer waits for CLOSE: a refusal would hang Linux, so
        one that is not established is answered too."""
        if trace.gpadl_teardown.on:
            trace.gpadl_teardown(message.gpadl)
        try:
            gpadl = self.gpadls.get(message.gpadl, message.relid)
        except GuestProtocolError:
            torndown = protocol.GpadlTorndown(message.gpadl)
            self._post(torndown, trace.gpadl_torndown, message.gpadl, relid=message.relid)
            raise
        if gpadl.torn_down:
            raise GuestProtocolError(f"second teardown of gpadl {message.gpadl:#x}")
        gpadl.torn_down = True
        channel = self.channels.get(gpadl.relid)
        if channel is not None and self._runs_on(channel, gpadl):
            if trace.gpadl_teardown_delayed.on:
                trace.gpadl_teardown_delayed(gpadl.id, channel.relid)
        else:
            self._torndown(gpadl)

    def _may_signal(self, vp: int) -> bool:
        """Whether a channel may have its events on `vp`, or none."""
        return vp < self._vp_count or vp == protocol.NO_VP

    @staticmethod
    def _runs_on(channel: ServedChannel, gpadl: Gpadl) -> bool:
        return isinstance(channel.state, Open | Opening) and channel.state.gpadl == gpadl.id

    def _torndown(self, gpadl: Gpadl) -> None:
        self.gpadls.remove(gpadl)
        self._post(protocol.GpadlTorndown(gpadl.id), trace.gpadl_torndown, gpadl.id, relid=gpadl.relid)

    def _relid_released(self, message: protocol.RelidReleased) -> None:
        if trace.relid_released.on:
            trace.relid_released(message.relid)
        channel = self._table.known(message.relid)
        if not isinstance(channel.state, Rescinded):
            raise GuestProtocolError(f"RELID_RELEASED while {channel.state}")
        self._release(channel)
        self.actions.append(Gone(channel))

    def _modify_channel(self, message: protocol.ModifyChannel) -> None:
        channel = self.channels.get(message.relid)
        usable = channel is not None and isinstance(channel.state, Open) and self._may_signal(message.target_vp)
        status = Status.SUCCESS if usable else Status.INVALID_PARAMETER
        if trace.modify_channel.on:
            trace.modify_channel(message.relid, message.target_vp, status)
        self._post(protocol.ModifyChannelResponse(message.relid, status))
        if channel is None or not isinstance(channel.state, Open) or status:
            raise GuestProtocolError(f"MODIFYCHANNEL {message.relid} to VP {message.target_vp}")
        channel.state.target_vp = message.target_vp

    def _tl_connect(self, message: protocol.TlConnectRequest) -> None:
        if not self.on_connect(message.endpoint, message.service):
            self.refuse_connect(message.endpoint, message.service)

    # Both

    def _offer(self, channel: ServedChannel) -> None:
        self._enter_channel(channel, Offered())
        offer = channel.offer
        self._post(
            protocol.OfferChannel(
                offer.type,
                offer.instance,
                bytes(16),
                offer.flags,
                offer.mmio_mib,
                offer.user_defined,
                offer.sub_channel,
                0,
                channel.relid,
                monitor_id=channel.monitor_id or 0,
                monitor_allocated=int(channel.monitor_id is not None),
                dedicated=1,
                connection_id=channel.connection_id,
            ),
            trace.send_offer,
            channel.relid,
            channel.device_id,
        )

    def _close(self, channel: ServedChannel) -> None:
        """Close a channel's rings; answer a teardown that waited for it."""
        if not isinstance(channel.state, Open | Opening):
            return
        gpadl = self.gpadls.lists.get((channel.relid, channel.state.gpadl))
        self.actions.append(CloseRings(channel))
        if gpadl is not None and gpadl.torn_down:
            self._torndown(gpadl)

    def _release(self, channel: ServedChannel) -> None:
        """Free a channel's relid and GPADLs; offer the channels that waited for that."""
        self.gpadls.forget(channel.relid)
        for successor in self._table.release(channel):
            if isinstance(self.state, Serving):
                self._offer(successor)

    def _post(
        self, message: protocol.HostMessage, event: Event | None = None, *values: int, relid: int | None = None
    ) -> None:
        """Send a message, if the agreed version has it. `relid`: of its channel, if it is not in the message."""
        if not isinstance(self.state, Disconnected) and self.state.version >= message.SINCE:
            about: int = getattr(message, "relid", 0) if relid is None else relid
            self.actions.append(Post(self.state.vp, message.build(), event, values, about))

    def _enter(self, state: ConnectionState) -> None:
        if trace.connection_state.on:
            trace.connection_state(self.state.NAME, state.NAME)
        check(CONNECTION, type(self.state), type(state))
        self.state = state

    def _enter_channel(self, channel: ServedChannel, state: ChannelState) -> None:
        if trace.channel_state.on:
            trace.channel_state(channel.relid, channel.offer.name, channel.state.NAME, state.NAME)
        check(CHANNEL, type(channel.state), type(state))
        channel.state = state
