"""The VMBus of a machine: joins the server to the mailbox and to the partition's events, and devices to their rings.

loop thread   Mailbox -> server.receive -> actions -> mailbox, rings, devices
              HvSignalEvent -> Channel.signalled
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import assert_never
from uuid import UUID

from pyvmm.contain import contain
from pyvmm.errors import ConfigError, GuestError, GuestProtocolError, HostError
from pyvmm.hyperv.partition import Partition
from pyvmm.hyperv.tlfs import SINT_COUNT
from pyvmm.loop import Timer
from pyvmm.memory import GuestMemory
from pyvmm.qapi import VmbusChannelInfo
from pyvmm.tap import Fields, Item
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.gpadl import Gpadl
from pyvmm.vmbus.mailbox import Incoming, Mailbox
from pyvmm.vmbus.monitor_page import MonitorPage
from pyvmm.vmbus.protocol import Status
from pyvmm.vmbus.ring import Ring, RingReader, RingWriter
from pyvmm.vmbus.server import Server
from pyvmm.vmbus.states import (
    Action,
    BusConnected,
    CloseRings,
    Disconnected,
    DropMessages,
    Gone,
    Open,
    Opened,
    Opening,
    OpenRings,
    Post,
    Rescinded,
    ServedChannel,
)
from pyvmm.vmbus.timers import Scheduler


class Vmbus:
    """The bus. All methods belong to the loop's thread."""

    def __init__(
        self,
        loop: Scheduler,
        memory: GuestMemory,
        partition: Partition,
        max_version: int = protocol.LATEST_VERSION,
    ) -> None:
        self.server = Server(memory, vp_count=partition.vp_count, max_version=max_version)
        self.refused: Counter[str] = self.server.refused
        """Counts of protocol violations by the guest: per message type, error class and device name."""
        self.loop = loop
        self.memory = memory
        self._partition = partition
        self.taps = partition.taps
        self._primaries: dict[VmbusDevice, ServedChannel] = {}
        self._devices: dict[int, VmbusDevice] = {}  # by ServedChannel.device_id
        self._channels: dict[ServedChannel, Channel] = {}  # the open ones
        self._leaving: dict[VmbusDevice, tuple[Callable[[], object], Timer]] = {}  # not rescinded yet
        self._gone: dict[ServedChannel, Callable[[], object]] = {}  # rescinded, not released yet
        self.contacts = 0
        """Count of contacts by guest kernels."""
        self.opened: set[str] = set()
        """Names of the devices whose channels any kernel has opened."""
        self._acting = False
        self._monitor_page = MonitorPage(loop, memory, lambda: self.server.monitor_page)
        self._mailbox = Mailbox(loop, partition, self._receive, self.refused, max_version, self._channel_name)
        partition.connect_signal(protocol.EVENT_CONNECTION, self._shared_signal)

    # The machine's side

    def add(self, device: VmbusDevice) -> None:
        """Add a device to the bus; it is offered to a running guest at once."""
        self._primaries[device] = self.server.add(device.offer, id(device))
        self._devices[id(device)] = device
        self._act()

    def remove(self, device: VmbusDevice, gone: Callable[[], object] = lambda: None) -> None:
        """Remove a device from the bus. If its channel is open, `leaving` is called first, and `closed` when it is
        rescinded; `gone()` is called once the guest has released it, which may be never.
        """
        assert device not in self._leaving, f"{device.offer.name} is leaving already"
        channel = self._channels.get(self._primaries[device])
        if channel is None:
            self._rescind(device, gone)
            return
        leave = partial(self._leave, device)
        self._leaving[device] = gone, self.loop.after(device.LEAVING_SECONDS, leave)
        channel.leave(leave)

    def _leave(self, device: VmbusDevice) -> None:
        """Rescind a device after `leaving`: it has finished, or lost its channel, or timed out."""
        if device in self._leaving:
            gone, timer = self._leaving.pop(device)
            timer.cancel()
            self._rescind(device, gone)

    def _rescind(self, device: VmbusDevice, gone: Callable[[], object]) -> None:
        served = self._primaries.pop(device)
        del self._devices[served.device_id]
        self.server.remove(served)
        if isinstance(served.state, Rescinded):
            self._gone[served] = gone
        self._act()
        if not isinstance(served.state, Rescinded):
            gone()

    def reset(self) -> None:
        """Handle a machine reset: drop the guest's channels, GPADLs and messages; reset devices to power-on state."""
        self._mailbox.forget_received()
        self.server.reset("machine reset")
        self._act()
        for device in self.devices():  # hvsock connections leave the bus meanwhile
            device.reset()

    def devices(self) -> list[VmbusDevice]:
        return list(self._primaries)

    def refuse_connect(self, endpoint: UUID, service: UUID) -> None:
        """Refuse an hvsock connection of the guest that `Server.on_connect` took before."""
        self.server.refuse_connect(endpoint, service)
        self._act()

    def channel(self, device: VmbusDevice, sub_channel: int = 0) -> Channel | None:
        """Return the device's channel while the guest has it open."""
        served = self.server.offered.get(device.offer.key._replace(sub_channel=sub_channel))
        return None if served is None else self._channels.get(served)

    def device_of(self, relid: int) -> VmbusDevice | None:
        """Return the device of a channel, None for an unknown relid."""
        served = self.server.channels.get(relid)
        return None if served is None else self._devices.get(served.device_id)

    def open_channels(self) -> list[tuple[ServedChannel, Channel]]:
        """Return the channels that the guest has open, sub-channels too."""
        return [(served, each) for served, each in self._channels.items() if isinstance(served.state, Open)]

    @property
    def version(self) -> int | None:
        """Return the version agreed on with the guest, major << 16 | minor; None while not connected."""
        state = self.server.state
        return None if isinstance(state, Disconnected) else state.version

    def info(self) -> list[VmbusChannelInfo]:
        """Return the channels for `info vmbus`; the machine adds `id` and `path`."""
        rows: list[VmbusChannelInfo] = []
        for served in self.server.offered.values():
            row: VmbusChannelInfo = {
                "relid": served.relid,
                "name": served.offer.name,
                "type": str(served.offer.type),
                "guid": str(served.offer.instance),
                "state": served.state.NAME,
            }
            if served.offer.sub_channel:
                row["sub-channel"] = served.offer.sub_channel
            channel = self._channels.get(served)
            if channel is not None and isinstance(served.state, Open):
                if served.state.target_vp != protocol.NO_VP:
                    row["target-vp"] = served.state.target_vp
                row |= {
                    "ring-in": channel.reader.size,
                    "ring-out": channel.writer.size,
                    "ring-in-used": _used(channel.reader.available, channel.reader.size),
                    "ring-out-used": _used(channel.writer.used, channel.writer.size),
                    "packets-in": channel.packets_in,
                    "packets-out": channel.packets_out,
                    "signals-in": channel.signals_in,
                    "signals-out": channel.signals_out,
                    "queued": channel.queued,
                }
                if channel.broken:
                    row["broken"] = channel.broken
            row["refused"] = self.refused[served.offer.name]
            rows.append(row)
        return rows

    # Messages

    def _receive(self, message: Incoming) -> None:
        """Serve one message of the guest."""
        try:
            self.server.receive(message.payload, message.connection_id)
        except Exception as error:
            contain("VMBus message", error)
        self._act()

    def _shared_signal(self) -> None:
        """Handle the shared event of guests before 2.4, which we refuse; others have no reason to signal it."""
        if trace.signal_event.on:
            trace.signal_event()

    # Actions

    def _act(self) -> None:
        """Perform the server's actions in order; actions that a device causes meanwhile are appended."""
        if self._acting:
            return
        self._acting = True
        try:
            while self.server.actions:
                try:
                    self._do(self.server.actions.popleft())
                except Exception as error:
                    contain("VMBus", error)
        finally:
            self._acting = False

    def _do(self, action: Action) -> None:
        match action:
            case Post():
                self._mailbox.post(action)
            case DropMessages():
                self._mailbox.drop()
            case BusConnected():
                self.contacts += 1
                for device in self.devices():
                    device.bus_connected()
            case OpenRings():
                self._open(action)
            case Opened(served):
                self.opened.add(served.offer.name)
                self._channels[served].opened()
            case CloseRings(served):
                self._close(served)
            case Gone(served):
                self._gone.pop(served, lambda: None)()
            case _:
                assert_never(action)

    def _open(self, action: OpenRings) -> None:
        served = action.channel
        if not isinstance(served.state, Opening):
            return  # removed while the guest opened it
        try:
            reader, writer = self._make_rings(action)
        except GuestError as error:
            self.count_refusal(served, error)
            self.server.open_done(served, Status.INVALID_PARAMETER)
            return
        device = self._devices[served.device_id]
        channel = Channel(self, served, device, reader, writer, version=action.version, user_data=action.user_data)
        try:
            self._partition.connect_signal(served.connection_id, channel.signalled)
        except HostError as error:  # no eventfd left, for example
            contain("VMBus", error)
            self.server.open_done(served, Status.UNSUCCESSFUL)
            return
        self._channels[served] = channel
        if served.monitor_id is not None:
            self._monitor_page.watch(served.monitor_id, channel.signalled)
        self.server.open_done(served, Status.SUCCESS)

    def _make_rings(self, action: OpenRings) -> tuple[RingReader, RingWriter]:
        pair: dict[str, Ring] = {}
        for name, pages in (("guest", action.send_pages), ("host", action.receive_pages)):
            fields: Fields = {"channel": action.channel.offer.name, "relid": action.channel.relid, "ring": name}
            pair[name] = Ring(self.memory, pages, tap=self.taps.index, fields=fields, pair=pair)
        return RingReader(pair["guest"]), RingWriter(pair["host"], action.channel.offer.packet_limit)

    def _channel_name(self, relid: int) -> str:
        served = self.server.channels.get(relid)
        return "" if served is None else served.offer.name

    def _close(self, served: ServedChannel) -> None:
        channel = self._channels.pop(served, None)
        if channel is None:
            return  # its rings were never made
        self._partition.disconnect_signal(served.connection_id)
        if served.monitor_id is not None:
            self._monitor_page.forget(served.monitor_id)
        channel.close()
        if self._primaries.get(channel.device) is served:
            self._leave(channel.device)

    # What channels use

    def notify(self, served: ServedChannel) -> None:
        """Set the channel's event flag on the VP that the guest chose."""
        state = served.state
        if not isinstance(state, Open) or state.target_vp == protocol.NO_VP:
            return
        if self.taps.event.on:
            fields: Fields = {
                "channel": served.offer.name,
                "relid": served.relid,
                "vp": state.target_vp,
                "sint": protocol.SINT,
                "flag": served.relid,
            }
            self.taps.event.cross("out", b"", fields, self._tapped_event)
        else:
            self._set_flag(state.target_vp, protocol.SINT, served.relid)

    def _tapped_event(self, item: Item) -> None:
        vp, sint, flag = (int(item.fields[name]) for name in ("vp", "sint", "flag"))
        if not (0 <= vp < self._partition.vp_count and 0 <= sint < SINT_COUNT and 0 <= flag <= protocol.RELID_MAX):
            raise HostError(f"no event flag {flag} of SINT {sint} on VP {vp}")
        self._set_flag(vp, sint, flag)

    def _set_flag(self, vp: int, sint: int, flag: int) -> None:
        if trace.channel_notify_guest.on:
            trace.channel_notify_guest(flag)
        if not self._partition.signal_event(vp, sint, flag) and trace.event_lost.on:
            trace.event_lost(flag, vp)

    def gpadl(self, served: ServedChannel, id: int) -> Gpadl:
        """Return the channel's established GPADL with this id. Raises GuestProtocolError if there is none."""
        return self.server.gpadls.get(id, served.relid)

    def offer_sub_channel(self, primary: ServedChannel, number: int) -> None:
        """Offer a sub-channel of a device. Raises GuestProtocolError if it is offered already, or on a full bus."""
        offer = replace(primary.offer, sub_channel=number)
        if offer.key in self.server.offered:
            raise GuestProtocolError(f"{offer.name}: sub-channel {number} is offered already")
        try:
            self.server.add(offer, primary.device_id)
        except ConfigError as error:
            raise GuestProtocolError(str(error)) from error
        self._act()

    def rescind_sub_channel(self, primary: ServedChannel, number: int) -> None:
        """Rescind a sub-channel, if it is offered."""
        served = self.server.offered.get(primary.offer.key._replace(sub_channel=number))
        if served is not None:
            self.server.remove(served)
            self._act()

    def count_refusal(self, served: ServedChannel, error: GuestError) -> None:
        """Count and trace a protocol violation by the guest on a channel."""
        self.refused[served.offer.name] += 1
        self.refused[type(error).__name__] += 1
        if trace.packet_refused.on:
            trace.packet_refused(served.relid, type(error).__name__, str(error))


def _used(size_used: Callable[[], int], size: int) -> int:
    """Return the used bytes of a ring; all of it if the guest broke its indices."""
    try:
        return size_used()
    except GuestError:
        return size
