"""An open channel: what a device holds of the guest's driver at the other end.

Source: Linux drivers/hv/channel.c and ring_buffer.c, for what the other end expects.

Joins a pair of rings to the loop: reads packets in bounded batches and hands them to the device, writes the device's
packets, queues them while the guest's ring is full, keeps the device's timers, and forgets everything at close.
All methods belong to the loop's thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pyvmm.contain import contain
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.loop import Timer
from pyvmm.memory import GuestMemory
from pyvmm.vmbus import events as trace
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.gpadl import Gpadl
from pyvmm.vmbus.packet import Packet, PacketFlag, PacketType, transfer_pages
from pyvmm.vmbus.ring import BrokenRing, RingReader, RingWriter
from pyvmm.vmbus.states import ServedChannel
from pyvmm.vmbus.timers import ChannelTimers, Scheduler

PACKETS_PER_STEP = 64
"""Packets read before the loop gets a turn: a guest that fills its ring as fast as it can must not starve the rest.
At some 10 µs each a step stays well under a millisecond of Python."""

BYTES_PER_STEP = 16 << 10
"""Payload after which a step ends as well, with the packet that reached it: what a device does with a packet goes by
its length. Four of the longest packets that Linux sends."""

SEND_QUEUE_LIMIT = 256
"""Packets that may wait for room in the guest's ring. No device of ours has more than a few outstanding; a guest that
does not read for so long is stuck or hostile."""

REPLY_QUEUE_LIMIT = 64
"""With so many packets waiting for room nothing more is read: what is read may need an answer."""

SUB_CHANNEL_LIMIT = 64
"""Sub-channels of a device: Linux's network driver takes 64 channels at most, its SCSI driver one a CPU."""

FULL_RING_POLL = 0.01
"""Seconds between looks at a full ring of a guest that does not know the pending send size."""


_ASKS = int(PacketFlag.COMPLETION_REQUESTED)  # a plain int: `&` with an IntFlag takes as long as all the rest


class ChannelBus(Protocol):
    """What a channel needs of the bus it is on."""

    loop: Scheduler
    memory: GuestMemory

    def notify(self, served: ServedChannel) -> None:
        """Set the channel's event flag in the guest."""

    def count_refusal(self, served: ServedChannel, error: GuestError) -> None:
        """The guest broke a rule on the channel."""

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
        self.broken: str | None = None  # why nothing is read or sent any more, until the guest opens it anew
        self.packets_in = self.packets_out = self.signals_in = self.signals_out = 0
        self.device = device
        self.was_opened = False  # whether the device knows of the channel
        self._reader = reader
        self._writer = writer
        self._bus = bus
        self._served = served
        self._loop = bus.loop
        self._is_open = True
        self._queue: deque[Packet] = deque()
        self._requests: Counter[int] = Counter()  # by transaction id, those that the device has to complete
        self._waiters: deque[tuple[int, Callable[[], Any]]] = deque()
        self.timers = ChannelTimers(bus.loop, self._guarded)
        self._poll: Timer | None = None
        self._continuing = False
        self._flushing = False

    # What devices use

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def reader(self) -> RingReader:
        """The guest's sending ring, for `info`."""
        return self._reader

    @property
    def writer(self) -> RingWriter:
        """The guest's receiving ring, for `info`."""
        return self._writer

    @property
    def queued(self) -> int:
        """Packets that wait for room in the guest's ring."""
        return len(self._queue)

    @property
    def max_payload(self) -> int:
        """Bytes of the largest payload that the guest's ring and its driver take. Devices cut their messages to it:
        MAX_PAYLOAD, or less where the guest has made its ring small.
        """
        return self._writer.max_payload

    def send(self, payload: bytes, *, transaction_id: int = 0, flags: int = 0) -> None:
        """Send one in-band packet; it is queued while the guest's ring is full.

        Raises GuestProtocolError if SEND_QUEUE_LIMIT packets wait already, or if the payload is longer than
        `max_payload`. On a closed or broken channel the packet is dropped (and traced).
        """
        self._send(Packet(PacketType.IN_BAND, flags, transaction_id, payload))

    def complete(self, transaction_id: int, payload: bytes = b"") -> None:
        """Answer a packet that asked for a completion, once, in any order; for devices with OWN_COMPLETIONS.

        Raises GuestProtocolError as `send`; the packet counts as answered then too.
        """
        if not self._is_open:
            return
        assert self._requests[transaction_id] > 0, f"{self.name}: no request {transaction_id:#x}"
        self._answered(transaction_id)
        self._send(Packet(PacketType.COMPLETION, 0, transaction_id, payload))

    def send_pages(
        self, set_number: int, ranges: Sequence[tuple[int, int]], payload: bytes, *, transaction_id: int
    ) -> None:
        """Tell the guest of (length, offset) ranges in memory that it lent: a TRANSFER_PAGES packet.

        The guest completes it (a packet of type COMPLETION) when it is done with them. Queued and refused as by
        `send`; the ranges count for `max_payload`.
        """
        descriptor = transfer_pages(set_number, ranges)
        flags = PacketFlag.COMPLETION_REQUESTED
        self._send(Packet(PacketType.TRANSFER_PAGES, flags, transaction_id, payload, descriptor))

    @property
    def outstanding(self) -> int:
        """Packets that wait for the device's `complete`."""
        return self._requests.total()

    def room(self) -> int:
        """Payload bytes that one `send` could take now without queueing; 0 if none."""
        if not self._is_open or self.broken or self._queue:
            return 0
        try:
            return self._writer.room()
        except BrokenRing as error:
            self._break(error)
            return 0

    def when_room(self, payload_size: int, callback: Callable[[], Any]) -> None:
        """Call `callback()` once `room()` is at least `payload_size`: at once if it is, else when the guest has read.

        First come, first served, after packets that `send` queued. Forgotten at close. Raises GuestProtocolError if
        it is more than `max_payload`.
        """
        self._check_size(payload_size)
        if not self._is_open or self.broken:
            return
        self._waiters.append((payload_size, callback))
        self._flush()

    def clock(self) -> float:
        """Seconds of the loop's clock."""
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
        """Memory that the guest lent for this channel. Raises GuestProtocolError if it lent none by this id.

        Ask anew for each use and keep no list: the guest may have taken it back.
        """
        return self._bus.gpadl(self._served, id)

    def offer_sub_channel(self, number: int) -> None:
        """Offer one more channel of the device, for which the guest asked over this one, the primary.

        It is `opened` as this one was, and rescinded when this one closes. Raises GuestProtocolError for a number
        below 1, above SUB_CHANNEL_LIMIT or offered already, and on a channel that is closed.
        """
        assert not self.sub_channel, "sub-channels belong to the primary channel"
        if not 1 <= number <= SUB_CHANNEL_LIMIT:
            raise GuestProtocolError(f"{self.name}: sub-channel {number}, there may be {SUB_CHANNEL_LIMIT}")
        if not self._is_open:
            raise GuestProtocolError(f"{self.name}: sub-channel {number} of a closed channel")
        self._bus.offer_sub_channel(self._served, number)

    def rescind_sub_channel(self, number: int) -> None:
        """Take one of them away again; nothing happens if there is none of that number (0 is this channel)."""
        if number:
            self._bus.rescind_sub_channel(self._served, number)

    # What the bus calls

    def leave(self, done: Callable[[], object]) -> None:
        """The device is about to be rescinded; it calls `done()` when nothing more is on the way."""
        self._guarded(lambda: self.device.leaving(done))

    def opened(self) -> None:
        """The guest is told that the channel is open. Tells the device, and reads what the guest wrote already."""
        self.was_opened = True
        self._guarded(lambda: self.device.opened(self))
        self._guarded(self._read)

    def signalled(self) -> None:
        """The guest signalled: it wrote a packet, or read some of a full ring."""
        self.signals_in += 1
        if trace.channel_signalled.on:
            trace.channel_signalled(self.relid)
        self._guarded(self._serve)

    def _serve(self) -> None:
        self._flush()
        self._read()

    def close(self) -> None:
        """End everything: timers, queue, waiters; then tell the device, if it knew."""
        self._is_open = False
        self.timers.end()
        if self._poll:
            self._poll.cancel()
        self._queue.clear()
        self._waiters.clear()
        self._requests.clear()
        if self.was_opened:
            self._guarded(lambda: self.device.closed(self))

    # Reading

    def _read(self) -> None:
        """Take up to PACKETS_PER_STEP packets or BYTES_PER_STEP; go on in the next turn if there may be more."""
        if not self.was_opened or not self._is_open or self.broken or self._continuing:
            return
        if self._held():
            return  # _flush or complete comes back to it
        limit = PACKETS_PER_STEP
        if own := self.device.OWN_COMPLETIONS:
            limit = min(limit, own - self.outstanding)
        try:
            self._reader.mask()
            for packet in self._reader.read(limit, BYTES_PER_STEP):
                self._receive(packet)
                if not self._is_open or self.broken:
                    return
            if self._reader.publish():
                self._signal()
            if not self._reader.available() and not self._reader.unmask():
                return
        except BrokenRing as error:
            self._break(error)
            return
        if not self._held():
            self._read_later()

    def _held(self) -> bool:
        """Whether nothing is read because of what was read before: answers wait for room, or for the device."""
        own = self.device.OWN_COMPLETIONS
        return len(self._queue) >= REPLY_QUEUE_LIMIT or (bool(own) and self.outstanding >= own)

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
        asks, own = packet.flags & _ASKS, self.device.OWN_COMPLETIONS
        if asks and own:
            self._requests[packet.transaction_id] += 1
        served = self._guarded(lambda: self.device.packet(self, packet))
        if asks and own and not served:
            self._answered(packet.transaction_id)
        elif asks and not own and self._is_open:
            self._guarded(lambda: self._send(Packet(PacketType.COMPLETION, 0, packet.transaction_id, b"")))

    def _answered(self, transaction_id: int) -> None:
        """A packet is completed, or refused; if others had to wait for that, read on."""
        was_held = self._held()
        if self._requests[transaction_id] > 1:
            self._requests[transaction_id] -= 1
        else:
            del self._requests[transaction_id]
        if was_held:
            self._read_later()

    def _guarded(self, callback: Callable[[], Any]) -> bool:
        """Run a device's code, or the channel's own; what the guest did wrong ends here, and what we did. True: it
        went well."""
        try:
            callback()
            return True
        except GuestError as error:
            self._bus.count_refusal(self._served, error)
        except Exception as error:
            self.broken = f"an error in pyvmm: {type(error).__name__}"
            contain(f"channel {self.name}", error)
        return False

    # Writing

    def _send(self, packet: Packet) -> None:
        self._check_size(packet.size)
        if not self._is_open or self.broken:
            if trace.packet_dropped.on:
                trace.packet_dropped(self.relid, packet.type, len(packet.payload), self.broken or "closed")
            return
        if len(self._queue) >= SEND_QUEUE_LIMIT:
            raise GuestProtocolError(f"{self.name}: guest does not read, {SEND_QUEUE_LIMIT} packets wait")
        self._queue.append(packet)
        self._flush()

    def _check_size(self, payload_size: int) -> None:
        """Raise GuestProtocolError for a payload that no `write` would ever take: the guest chose the ring's size."""
        if payload_size > self._writer.max_payload:
            raise GuestProtocolError(
                f"{self.name}: a payload of {payload_size} bytes never fits, the ring of {self._writer.size} bytes"
                f" takes {self._writer.max_payload}"
            )

    def _flush(self) -> None:
        """Write what waits, then serve waiters, as far as there is room; ask to be signalled for the rest."""
        if self._flushing or not self._is_open or self.broken:
            return
        self._flushing = True
        was_held = len(self._queue) >= REPLY_QUEUE_LIMIT
        try:
            while self._is_open and not self.broken and (self._queue or self._waiters):
                needed = self._queue[0].size if self._queue else self._waiters[0][0]
                if not self._writer.has_room(needed) and not self._writer.request_room(needed):
                    self._poll_if_needed()
                    break
                if self._queue:
                    self._write(self._queue.popleft())
                else:
                    self._guarded(self._waiters.popleft()[1])
            else:
                if self._is_open and not self.broken:
                    self._writer.clear_request()
        except BrokenRing as error:
            self._break(error)
        finally:
            self._flushing = False
        if was_held and len(self._queue) < REPLY_QUEUE_LIMIT:
            self._read_later()  # not at once: this may run inside a batch

    def _write(self, packet: Packet) -> None:
        must_signal = self._writer.write(packet)
        self.packets_out += 1
        if trace.packet_sent.on:
            trace.packet_sent(self.relid, packet.type, packet.flags, packet.transaction_id, len(packet.payload))
        if must_signal or self.device.offer.signal_each:
            self._signal()

    def _signal(self) -> None:
        self.signals_out += 1
        self._bus.notify(self._served)

    def _poll_if_needed(self) -> None:
        """Look again soon if the guest will not signal room by itself."""
        if not self._writer.guest_signals_room and self._poll is None:
            self._poll = self._loop.after(FULL_RING_POLL, self._polled)

    def _polled(self) -> None:
        self._poll = None
        self._guarded(self._flush)

    def _break(self, error: BrokenRing) -> None:
        self.broken = str(error)
        if trace.ring_broken.on:
            trace.ring_broken(self.relid, self.broken)
        self._bus.count_refusal(self._served, error)
