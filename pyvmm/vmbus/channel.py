"""An open channel: a device's connection to the driver in the guest.

Source: Linux drivers/hv/channel.c and ring_buffer.c, for the driver's side.

Joins a pair of rings to the loop: reads packets in bounded batches and passes them to the device, writes the device's
packets, queues them while the guest's ring is full, keeps the device's timers, and drops everything at close.
All methods belong to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from pyvmm.contain import contain
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.loop import Timer
from pyvmm.memory import GuestMemory
from pyvmm.tap import Fields, Taps
from pyvmm.vmbus import events as trace
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.gpadl import Gpadl
from pyvmm.vmbus.packet import Packet, PacketFlag, PacketType, transfer_pages
from pyvmm.vmbus.ring import BrokenRing, RingReader, RingWriter
from pyvmm.vmbus.states import ServedChannel
from pyvmm.vmbus.tapped import tap_received, tap_sent
from pyvmm.vmbus.timers import ChannelTimers, Scheduler

PACKETS_PER_STEP = 64
"""Limit of packets read per step: a guest that fills its ring as fast as it can must not starve the loop. At some
10 µs each a step stays well under a millisecond of Python."""

BYTES_PER_STEP = 16 << 10
"""Limit of payload bytes read per step; the step ends with the packet that reaches it, as a device's work grows with
a packet's length. Four of the longest packets that Linux sends."""

SEND_QUEUE_LIMIT = 256
"""Limit of packets queued while the guest's ring is full. No device of ours has more than a few outstanding; a guest
that does not read for so long is stuck or hostile."""

REPLY_QUEUE_LIMIT = 64
"""Number of queued packets at which reading stops: a packet that is read may need an answer."""

SUB_CHANNEL_LIMIT = 64
"""Limit of sub-channels per device: Linux's network driver uses 64 channels at most, its SCSI driver one per CPU."""

FULL_RING_POLL = 0.01
"""Polling period, in seconds, of a full ring of a guest without support for the pending send size."""


_COMPLETION_REQUESTED = int(PacketFlag.COMPLETION_REQUESTED)  # a plain int: `&` with an IntFlag costs far more


class ChannelBus(Protocol):
    """The part of the bus's interface that channels use."""

    loop: Scheduler
    memory: GuestMemory
    taps: Taps

    def notify(self, served: ServedChannel) -> None:
        """Set the channel's event flag in the guest."""

    def count_refusal(self, served: ServedChannel, error: GuestError) -> None:
        """Count a protocol violation by the guest on the channel."""

    def gpadl(self, served: ServedChannel, id: int) -> Gpadl: ...

    def offer_sub_channel(self, primary: ServedChannel, number: int) -> None: ...

    def rescind_sub_channel(self, primary: ServedChannel, number: int) -> None: ...


class Channel:
    """A device's connection to its driver. Made by the bus when the guest opens the channel."""

    def __init__(
        self,
        bus: ChannelBus,
        served: ServedChannel,
        device: VmbusDevice,
        reader: RingReader,
        writer: RingWriter,
        *,
        version: int,
        user_data: bytes,
    ) -> None:
        self.memory = bus.memory
        self.relid = served.relid
        self.sub_channel = served.offer.sub_channel  # 0: the device's primary channel
        self.version = version
        self.user_data = user_data  # 120 bytes of the guest's OPEN
        self.name = device.offer.name
        self.broken: str | None = None  # why nothing is read or sent any more, until the guest reopens it
        self.packets_in = self.packets_out = self.signals_in = self.signals_out = 0
        self.device = device
        self.was_opened = False  # whether the device's `opened` was called
        self.reader = reader
        self.writer = writer
        self._bus = bus
        self._served = served
        self._loop = bus.loop
        self._taps = bus.taps
        self.is_open = True
        self._queue: deque[Packet] = deque()
        self._requests: dict[int, int] = {}  # how many by transaction id; for the device to complete
        self.outstanding = 0
        """Packets that await the device's `complete`."""
        self._answers = 0  # packets that it completed
        self._waiters: deque[tuple[int, Callable[[], Any]]] = deque()
        self.timers = ChannelTimers(bus.loop, self._guarded)
        self._poll: Timer | None = None
        self._continuing = False
        self._flushing = False
        self._held = False  # the device has suspended reading

    # For devices

    @property
    def queued(self) -> int:
        """Return the number of packets queued for lack of room in the guest's ring."""
        return len(self._queue)

    @property
    def max_payload(self) -> int:
        """Return the largest payload in bytes that the guest's ring and driver accept: MAX_PAYLOAD, or less if the
        guest's ring is small. Devices limit their messages to it.
        """
        return self.writer.max_payload

    def send(self, payload: bytes, *, transaction_id: int = 0, flags: int = 0) -> None:
        """Send one in-band packet; it is queued while the guest's ring is full.

        Raises GuestProtocolError if SEND_QUEUE_LIMIT packets are queued already, or if the payload is longer than
        `max_payload`. On a closed or broken channel the packet is dropped (and traced).
        """
        self._send(Packet(PacketType.IN_BAND, flags, transaction_id, payload))

    def complete(self, transaction_id: int, payload: bytes = b"") -> None:
        """Complete a packet that requested it, once, in any order; for devices with OWN_COMPLETIONS.

        Raises GuestProtocolError as `send`; the packet counts as answered then too.
        """
        if not self.is_open:
            return
        assert transaction_id in self._requests, f"{self.name}: no request {transaction_id:#x}"
        self._answers += 1
        self._answered(transaction_id)
        self._send(Packet(PacketType.COMPLETION, 0, transaction_id, payload))

    def send_pages(
        self, set_number: int, ranges: Sequence[tuple[int, int]], payload: bytes, *, transaction_id: int
    ) -> None:
        """Send a TRANSFER_PAGES packet: (length, offset) ranges in an established GPADL.

        The guest completes it (a packet of type COMPLETION) when it is done with the ranges. Queued and refused as by
        `send`; the ranges count for `max_payload`.
        """
        descriptor = transfer_pages(set_number, ranges)
        flags = PacketFlag.COMPLETION_REQUESTED
        self._send(Packet(PacketType.TRANSFER_PAGES, flags, transaction_id, payload, descriptor))

    @property
    def awaits_signal(self) -> bool:
        """Whether the host reads nothing more before the guest signals: no batch goes on, and none is suspended."""
        usable = self.is_open and self.was_opened and not self.broken
        return usable and not self._continuing and not self._reading_suspended()

    @property
    def awaits_room(self) -> int:
        """Return the payload size for which the first queued packet or waiter awaits room; 0 if there is none."""
        if self._queue:
            return self._queue[0].size
        return self._waiters[0][0] if self._waiters else 0

    def room(self) -> int:
        """Return the payload bytes that one `send` could take now without queueing; 0 if none."""
        if not self.is_open or self.broken or self._queue:
            return 0
        try:
            return self.writer.room()
        except BrokenRing as error:
            self._break(error)
            return 0

    def when_room(self, payload_size: int, callback: Callable[[], Any]) -> None:
        """Call `callback()` once `room()` is at least `payload_size`: at once if it is, else when the guest has read.

        First come, first served, after packets that `send` queued. Dropped at close. Raises GuestProtocolError if
        `payload_size` is more than `max_payload`.
        """
        self._check_size(payload_size)
        if not self.is_open or self.broken:
            return
        self._waiters.append((payload_size, callback))
        self._flush()

    def clock(self) -> float:
        """Return the loop's clock in seconds."""
        return self._loop.clock()

    def after(self, seconds: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback()` once, `seconds` from now, unless the channel closes before."""
        return self.timers.after(seconds, callback)

    def every(self, period: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback()` every `period` seconds until cancelled or the channel closes."""
        return self.timers.every(period, callback)

    def later(self, callback: Callable[[], Any]) -> None:
        """Call `callback()` in a later turn of the loop, even if the channel closes before: for work in slices."""
        self._loop.post(lambda: self._guarded(callback))

    def gpadl(self, id: int) -> Gpadl:
        """Return this channel's established GPADL with this id. Raises GuestProtocolError if there is none.

        Look it up for each use and keep no reference: the guest may have torn it down.
        """
        return self._bus.gpadl(self._served, id)

    def offer_sub_channel(self, number: int) -> None:
        """Offer a sub-channel of the device, at the guest's request over this channel, the primary.

        The device's `opened` is called for it, too, and it is rescinded when this channel closes. Raises
        GuestProtocolError for a number below 1, above SUB_CHANNEL_LIMIT or offered already, and on a closed channel.
        """
        assert not self.sub_channel, "sub-channels belong to the primary channel"
        if not 1 <= number <= SUB_CHANNEL_LIMIT:
            raise GuestProtocolError(f"{self.name}: sub-channel {number}, there may be {SUB_CHANNEL_LIMIT}")
        if not self.is_open:
            raise GuestProtocolError(f"{self.name}: sub-channel {number} of a closed channel")
        self._bus.offer_sub_channel(self._served, number)

    def rescind_sub_channel(self, number: int) -> None:
        """Rescind a sub-channel; no effect if there is none with that number (0 is this channel)."""
        if number:
            self._bus.rescind_sub_channel(self._served, number)

    def hold(self, on: bool) -> None:
        """Suspend reading, or resume it: the device gets what was read already, and nothing more meanwhile."""
        was_held, self._held = self._held, on
        if was_held and not on:
            self._read_later()

    # For the bus

    def leave(self, done: Callable[[], object]) -> None:
        """Notify the device that it will be rescinded; it calls `done()` when it has answered pending requests."""
        self._guarded(lambda: self.device.leaving(done))

    def opened(self) -> None:
        """Call the device's `opened`, and read packets that the guest has already written."""
        self.was_opened = True
        self._guarded(lambda: self.device.opened(self))
        self._guarded(self._read)

    def signalled(self) -> None:
        """Handle the guest's signal: it wrote a packet, or read from a full ring."""
        if self._taps.event.on:
            fields: Fields = {"channel": self.name, "relid": self.relid}
            self._taps.event.cross("in", b"", fields, lambda item: self._signalled())
        else:
            self._signalled()

    def _signalled(self) -> None:
        self.signals_in += 1
        if trace.channel_signalled.on:
            trace.channel_signalled(self.relid)
        self._guarded(self._flush)
        self._guarded(self._read)

    def close(self) -> None:
        """Drop timers, queue and waiters; then call the device's `closed`, if `opened` was called."""
        self.is_open = False
        self.timers.end()
        if self._poll:
            self._poll.cancel()
        self._queue.clear()
        self._waiters.clear()
        self._requests.clear()
        self.outstanding = 0
        if self.was_opened:
            self._guarded(lambda: self.device.closed(self))

    # Reading

    def _read(self) -> None:
        """Read up to PACKETS_PER_STEP packets or BYTES_PER_STEP; go on in the next turn if there may be more."""
        if not self.was_opened or not self.is_open or self.broken or self._continuing:
            return
        if self._reading_suspended():
            return  # _flush or complete resumes reading
        limit = PACKETS_PER_STEP
        if own := self.device.OWN_COMPLETIONS:
            limit = min(limit, own - self.outstanding)
        try:
            self.reader.mask()
            for packet in self.reader.read(limit, BYTES_PER_STEP):
                if self._taps.packet.on:
                    tap_received(self._taps.packet, self, packet, self._receive, self._guarded)
                else:
                    self._receive(packet)
                if not self.is_open or self.broken:
                    return
            if self.reader.publish():
                self._signal()
            if not self.reader.available() and not self.reader.unmask():
                return
        except BrokenRing as error:
            self._break(error)
            return
        if not self._reading_suspended():
            self._read_later()

    def _reading_suspended(self) -> bool:
        """Whether reading is suspended: by the device, or because earlier answers are queued, or completions by the
        device are outstanding."""
        own = self.device.OWN_COMPLETIONS
        return self._held or len(self._queue) >= REPLY_QUEUE_LIMIT or (bool(own) and self.outstanding >= own)

    def _read_later(self) -> None:
        if not self._continuing:
            self._continuing = True
            self._loop.post(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        self._guarded(self._read)

    def _receive(self, packet: Packet) -> None:
        self.packets_in += 1
        if trace.packet_received.on:
            trace.packet_received(self.relid, packet.type, packet.flags, packet.transaction_id, len(packet.payload))
        wants_completion, own = packet.flags & _COMPLETION_REQUESTED, self.device.OWN_COMPLETIONS
        if wants_completion and own:
            self._requests[packet.transaction_id] = self._requests.get(packet.transaction_id, 0) + 1
            self.outstanding += 1
        answers = self._answers
        served = self._guarded(self.device.packet, self, packet)
        if wants_completion and own and not served and self._answers == answers and self.is_open:
            self._answered(packet.transaction_id)
        elif wants_completion and not own and self.is_open:
            self._guarded(lambda: self._send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, b"")))

    def _answered(self, transaction_id: int) -> None:
        """Record that a packet was completed or refused; resume reading if it was suspended for that."""
        left = self._requests.pop(transaction_id) - 1
        if left:
            self._requests[transaction_id] = left
        self.outstanding -= 1
        if self.outstanding == self.device.OWN_COMPLETIONS - 1:
            self._read_later()

    def _guarded(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Run a callback of the device or the channel; refuse on GuestError, contain other exceptions. Return whether
        it succeeded."""
        try:
            callback(*args)
            return True
        except GuestError as error:
            self._bus.count_refusal(self._served, error)
        except Exception as error:
            self.broken = f"an error in pyvmm: {type(error).__name__}"
            contain(f"channel {self.name}", error)
        return False

    # Writing

    def _send(self, packet: Packet) -> None:
        size = packet.size
        self._check_size(size)
        if not self.is_open or self.broken:
            if trace.packet_dropped.on:
                trace.packet_dropped(self.relid, packet.type, len(packet.payload), self.broken or "closed")
            return
        if len(self._queue) >= SEND_QUEUE_LIMIT:
            raise GuestProtocolError(f"{self.name}: guest does not read, {SEND_QUEUE_LIMIT} packets wait")
        if not (self._queue or self._waiters or self._flushing) and self._sent_at_once(packet, size):
            return
        self._queue.append(packet)
        self._flush()

    def _sent_at_once(self, packet: Packet, size: int) -> bool:
        """Write a packet before which none is queued, if there is room; return whether it was written or lost."""
        try:
            if not self.writer.has_room(size):
                return False
            self._write(packet)
        except BrokenRing as error:
            self._break(error)
        return True

    def _check_size(self, payload_size: int) -> None:
        """Raise GuestProtocolError for a payload that never fits into the ring, whose size the guest chose."""
        if payload_size > self.writer.max_payload:
            raise GuestProtocolError(
                f"{self.name}: a payload of {payload_size} bytes never fits, the ring of {self.writer.size} bytes"
                f" takes {self.writer.max_payload}"
            )

    def _flush(self) -> None:
        """Write queued packets, then call `when_room` waiters, while there is room; request a signal for the rest."""
        if self._flushing or not self.is_open or self.broken:
            return
        self._flushing = True
        was_suspended = len(self._queue) >= REPLY_QUEUE_LIMIT
        try:
            while self.is_open and not self.broken and (self._queue or self._waiters):
                needed = self._queue[0].size if self._queue else self._waiters[0][0]
                if not self.writer.has_room(needed) and not self.writer.request_room(needed):
                    self._poll_if_needed()
                    break
                if self._queue:
                    self._write(self._queue.popleft())
                else:
                    self._guarded(self._waiters.popleft()[1])
            else:
                if self.is_open and not self.broken:
                    self.writer.clear_request()
        except BrokenRing as error:
            self._break(error)
        finally:
            self._flushing = False
        if was_suspended and len(self._queue) < REPLY_QUEUE_LIMIT:
            self._read_later()  # not at once: this may run inside a batch

    def _write(self, packet: Packet) -> None:
        if self._taps.packet.on:
            tap_sent(self._taps.packet, self, packet, partial(self._wrote, packet), self._break)
        else:
            self._wrote(packet, self.writer.write(packet))

    def _wrote(self, packet: Packet, must_signal: bool) -> None:
        self.packets_out += 1
        if trace.packet_sent.on:
            trace.packet_sent(self.relid, packet.type, packet.flags, packet.transaction_id, len(packet.payload))
        if must_signal or self.device.offer.signal_each:
            self._signal()

    def _signal(self) -> None:
        self.signals_out += 1
        self._bus.notify(self._served)

    def _poll_if_needed(self) -> None:
        """Start polling for room if the guest does not signal it."""
        if not self.writer.guest_signals_room and self._poll is None:
            self._poll = self._loop.after(FULL_RING_POLL, self._polled)

    def _polled(self) -> None:
        self._poll = None
        self._guarded(self._flush)

    def _break(self, error: BrokenRing) -> None:
        self.broken = str(error)
        if trace.ring_broken.on:
            trace.ring_broken(self.relid, self.broken)
        self._bus.count_refusal(self._served, error)
