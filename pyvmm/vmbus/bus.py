"""The VMBus of a machine: joins the server to the partition's messages and events, and devices to their rings.

Source: Linux drivers/hv/hv.c, hv_post_message() for the statuses a guest understands; QEMU hw/hyperv/vmbus.c.

    vCPU thread   HvPostMessage -> _listen: checks, queue, status
    loop thread   _serve: server.receive -> actions -> partition.post_message, rings, devices
                  HvSignalEvent -> Channel.signalled
"""

from __future__ import annotations

import errno
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, assert_never

from pyvmm.contain import contain
from pyvmm.errors import GuestError, HostError
from pyvmm.hyperv.partition import Partition
from pyvmm.hyperv.tlfs import HypercallStatus
from pyvmm.memory import GuestMemory
from pyvmm.vmbus import events as trace
from pyvmm.vmbus import protocol
from pyvmm.vmbus.channel import Channel, Scheduler
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.protocol import MessageType, Status, Version
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

RECEIVE_QUEUE_LIMIT = 64
"""Messages taken from the guest and not served yet. A longer queue is answered with "insufficient buffers", and Linux
tries again after a while; QEMU holds 16."""
OUTBOX_LIMIT = 64
"""Messages to the guest that are not in its slot yet. Above it nothing more of the guest is served, so that one which
asks and never reads costs us no more than this."""
MESSAGES_PER_STEP = 16
"""Messages served before the loop gets a turn."""
STEP_SECONDS = 0.005
"""Seconds after which a step ends as well: opening a channel with the largest rings there are (32 MiB) costs 5 ms."""

_STARTS_AFRESH = (MessageType.INITIATE_CONTACT, MessageType.UNLOAD)


class Vmbus:
    """The bus. All methods belong to the loop's thread, but for the listener, which the partition calls."""

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
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queue_lock = threading.Lock()  # the queue and _serving, shared with vCPU threads
        self._serving = False
        self._acting = False
        self._outbox: deque[Post] = deque()
        self._in_flight = False  # one message at a time is with the partition, as in QEMU: its queue is bounded too
        self._posting = False
        self._epoch = 0  # counts DropMessages, to tell late answers for dropped messages
        self._connections = {protocol.CONTACT_CONNECTION_OLD}
        if max_version >= Version.WIN10_5_0:
            self._connections |= {protocol.CONTACT_CONNECTION, protocol.MESSAGE_CONNECTION}
        partition.listen(self._listen)
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
        with self._queue_lock:
            self._queue.clear()
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
                "state": type(served.state).__name__.lower(),
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

    # Messages in

    def _listen(self, connection_id: int, message_type: int, payload: bytes) -> int:
        """HvPostMessage, on a vCPU thread. Linux tries again on "insufficient buffers"; "invalid connection" on a
        contact makes it try the next version at once."""
        status, reason = HypercallStatus.SUCCESS, ""
        if connection_id not in self._connections:
            status, reason = HypercallStatus.INVALID_CONNECTION_ID, "no such connection"
        elif message_type != protocol.SYNIC_MESSAGE_TYPE:
            status, reason = HypercallStatus.INVALID_HYPERCALL_INPUT, f"message type {message_type:#x}"
        elif not protocol.MessageHeader.SIZE <= len(payload) <= protocol.MESSAGE_SIZE_MAX:
            status, reason = HypercallStatus.INVALID_HYPERCALL_INPUT, f"{len(payload)} bytes"
        else:
            kind = int.from_bytes(payload[:4], "little")
            if trace.recv_message.on:
                trace.recv_message(kind, len(payload))
            if not self._enqueue(kind, connection_id, payload):
                status, reason = HypercallStatus.INSUFFICIENT_BUFFERS, "queue full"
        if status and trace.hypercall_refused.on:
            trace.hypercall_refused(connection_id, status, reason)
        return status

    def _enqueue(self, kind: int, connection_id: int, payload: bytes) -> bool:
        with self._queue_lock:
            if kind in _STARTS_AFRESH:
                self._queue.clear()  # moot now, and a crashed guest must not find the door shut
            elif len(self._queue) >= RECEIVE_QUEUE_LIMIT:
                return False
            self._queue.append((connection_id, payload))
            if self._serving:
                return True
            self._serving = True
        self._loop.post(self._serve)
        return True

    def _serve(self) -> None:
        """Serve what is queued, MESSAGES_PER_STEP or STEP_SECONDS at most, as long as the guest reads its answers."""
        until = monotonic() + STEP_SECONDS
        for _ in range(MESSAGES_PER_STEP):
            with self._queue_lock:
                if not self._queue or self._held():
                    self._serving = False
                    return
                connection_id, payload = self._queue.popleft()
            try:
                self.server.receive(payload, connection_id)
            except Exception as error:
                contain("VMBus message", error)
            self._act()
            if monotonic() > until:
                break
        self._loop.post(self._serve)

    def _held(self) -> bool:
        if len(self._outbox) < OUTBOX_LIMIT:
            return False
        return int.from_bytes(self._queue[0][1][:4], "little") not in _STARTS_AFRESH

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
                self._outbox.append(action)
                self._post()
            case DropMessages():
                self._partition.drop_messages(protocol.SINT)
                self._outbox.clear()
                self._in_flight = False
                self._epoch += 1
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

    def _post(self) -> None:
        """Hand the partition the next message, once the one before lies in the slot."""
        if self._posting:
            return
        self._posting = True
        try:
            while self._outbox and not self._in_flight:
                self._hand_over(self._outbox.popleft())
        finally:
            self._posting = False

    def _hand_over(self, message: Post) -> None:
        if message.event is not None and message.event.on:
            message.event(*message.values)
        if trace.post_msg.on:
            trace.post_msg(int.from_bytes(message.payload[:4], "little"), len(message.payload))
        self._in_flight = True
        done = partial(self._posted, self._epoch)
        self._partition.post_message(message.vp, protocol.SINT, protocol.SYNIC_MESSAGE_TYPE, message.payload, done)

    def _posted(self, epoch: int, status: int) -> None:
        """The partition tells what became of a message."""
        if trace.msg_cb.on:
            trace.msg_cb(status)
        if status == -errno.EAGAIN or epoch != self._epoch:
            return  # still queued, or given up since
        if status:
            self.refused["POST"] += 1
        self._in_flight = False
        self._post()
        self._serve_on()

    def _serve_on(self) -> None:
        """The guest read something: serve on if that was what we waited for."""
        with self._queue_lock:
            if self._serving or not self._queue or self._held():
                return
            self._serving = True
        self._loop.post(self._serve)

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
