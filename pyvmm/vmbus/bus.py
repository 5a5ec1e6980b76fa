"""The VMBus of a machine: joins the server to the mailbox and to the partition's events, and devices to their rings.

loop thread   Mailbox -> server.receive -> actions -> mailbox, rings, devices
              HvSignalEvent -> Channel.signalled
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, assert_never

from pyvmm.contain import contain
from pyvmm.errors import GuestError, HostError
from pyvmm.hyperv.partition import Partition
from pyvmm.memory import GuestMemory
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.channel import Channel, Scheduler
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.mailbox import Incoming, Mailbox
from pyvmm.vmbus.protocol import Status
from pyvmm.vmbus.ring import Ring, RingReader, RingWriter
from pyvmm.vmbus.server import Server
from pyvmm.vmbus.states import (
    Action,
    CloseRings,
    Disconnected,
    DropMessages,
    Gone,
    Open,
    Opened,
    OpenRings,
    Post,
    Rescinded,
    Restarted,
    ServedChannel,
)


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
        """Rules the guest broke: per message type, error class and device name."""
        self._loop = loop
        self._memory = memory
        self._partition = partition
        self._served: dict[VmbusDevice, ServedChannel] = {}
        self._devices: dict[ServedChannel, VmbusDevice] = {}
        self._channels: dict[ServedChannel, Channel] = {}
        self._leaving: dict[ServedChannel, Callable[[], object]] = {}
        self.contacts = 0
        """How often a guest's kernel made contact."""
        self._acting = False
        self._mailbox = Mailbox(loop, partition, self._receive, self.refused, max_version)
        partition.connect_signal(protocol.EVENT_CONNECTION, self._shared_signal)

    # The machine's side

    def add(self, device: VmbusDevice) -> None:
        """Put a device on the bus; a running guest is offered it at once."""
        served = self.server.add(device.offer, id(device))
        self._served[device] = served
        self._devices[served] = device
        self._act()

    def remove(self, device: VmbusDevice, gone: Callable[[], object] = lambda: None) -> None:
        """Take a device off the bus. It is told `closed` if its channel was open; `gone()` is called once the guest
        has let go of it, which may be never.
        """
        served = self._served.pop(device)
        self.server.remove(served)
        if isinstance(served.state, Rescinded):
            self._leaving[served] = gone
        self._act()
        del self._devices[served]
        if not isinstance(served.state, Rescinded):
            gone()

    def reset(self) -> None:
        """Machine reset: the guest's channels, lists and messages are gone; devices are at power-on again."""
        self._mailbox.forget_received()
        self.server.reset("machine reset")
        self._act()
        for device in self._served:
            device.reset()

    def devices(self) -> list[VmbusDevice]:
        return list(self._served)

    def channel(self, device: VmbusDevice) -> Channel | None:
        """The device's channel while the guest has it open."""
        served = self._served.get(device)
        return None if served is None else self._channels.get(served)

    @property
    def version(self) -> int | None:
        """The version agreed on with the guest, major << 16 | minor; None while not connected."""
        state = self.server.state
        return None if isinstance(state, Disconnected) else state.version

    def info(self) -> list[dict[str, Any]]:
        """One dictionary per device, for `info vmbus`."""
        rows: list[dict[str, Any]] = []
        for device, served in self._served.items():
            row: dict[str, Any] = {
                "relid": served.relid,
                "name": served.offer.name,
                "type": str(served.offer.type),
                "guid": str(served.offer.instance),
                "state": served.state.NAME,
            }
            channel = self._channels.get(served)
            if channel is not None and isinstance(served.state, Open):
                row |= {
                    "target-vp": served.state.target_vp,
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
            row["refused"] = self.refused[device.offer.name]
            rows.append(row)
        return rows

    # Messages

    def _receive(self, message: Incoming) -> None:
        """One message of the guest."""
        try:
            self.server.receive(message.payload, message.connection_id)
        except Exception as error:
            contain("VMBus message", error)
        self._act()

    def _shared_signal(self) -> None:
        """The shared event of guests before 2.4, which we refuse; others have no reason to signal it."""
        if trace.signal_event.on:
            trace.signal_event()

    # Actions

    def _act(self) -> None:
        """Do what the server wants done, in order; what a device causes meanwhile comes after."""
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
            case Restarted():
                self.contacts += 1
                for device in self._served:
                    device.restarted()
            case OpenRings():
                self._open(action)
            case Opened(served):
                self._channels[served].opened()
            case CloseRings(served):
                self._close(served)
            case Gone(served):
                self._leaving.pop(served, lambda: None)()
            case _:
                assert_never(action)

    def _open(self, action: OpenRings) -> None:
        served = action.channel
        device = self._devices.get(served)
        if device is None:
            return  # removed while the guest opened it
        try:
            reader = RingReader(Ring(self._memory, action.send_pages))
            writer = RingWriter(Ring(self._memory, action.receive_pages))
        except GuestError as error:
            self._refused(served, error)
            self.server.open_done(served, Status.INVALID_PARAMETER)
            return
        channel = Channel(
            device,
            reader,
            writer,
            loop=self._loop,
            memory=self._memory,
            relid=served.relid,
            version=action.version,
            notify=lambda: self._notify(served),
            refused=lambda error: self._refused(served, error),
        )
        try:
            self._partition.connect_signal(served.connection_id, channel.signalled)
        except HostError as error:  # no eventfd left, for example
            contain("VMBus", error)
            self.server.open_done(served, Status.UNSUCCESSFUL)
            return
        self._channels[served] = channel
        self.server.open_done(served, Status.SUCCESS)

    def _close(self, served: ServedChannel) -> None:
        channel = self._channels.pop(served, None)
        if channel is None:
            return  # it never got as far as rings
        self._partition.disconnect_signal(served.connection_id)
        channel.close()

    def _notify(self, served: ServedChannel) -> None:
        state = served.state
        if not isinstance(state, Open):
            return
        if trace.channel_notify_guest.on:
            trace.channel_notify_guest(served.relid)
        if not self._partition.signal_event(state.target_vp, protocol.SINT, served.relid) and trace.event_lost.on:
            trace.event_lost(served.relid, state.target_vp)

    def _refused(self, served: ServedChannel, error: GuestError) -> None:
        """Count and trace a rule the guest broke on a channel."""
        self.refused[served.offer.name] += 1
        self.refused[type(error).__name__] += 1
        if trace.packet_refused.on:
            trace.packet_refused(served.relid, type(error).__name__, str(error))


def _used(look: Callable[[], int], size: int) -> int:
    """Bytes waiting in a ring, all of it if the guest broke its indices."""
    try:
        return look()
    except GuestError:
        return size
