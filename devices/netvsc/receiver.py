"""The link's frames on their way to the guest: put into a slot of its receive buffer, a batch at a time.

    link --read--> frames --> a batch for each channel: RNDIS packets one behind the other in a slot,
                              named by one TRANSFER_PAGES packet; the guest's completion frees the slot

While the guest has all slots the link is held: what came stays with the sender, whose own flow control acts. Frames
that the guest does not want, because its interface is down or they are for another address, are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pyvmm.contain import contained
from pyvmm.devices.netvsc import events as trace
from pyvmm.devices.netvsc import nvsp
from pyvmm.devices.netvsc.buffers import ReceiveBuffer
from pyvmm.devices.netvsc.card import Card
from pyvmm.devices.netvsc.offload import ETHERNET_SIZE
from pyvmm.devices.netvsc.rndis import FRAME_OFFSET, write_packet
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.net.link import Link
from pyvmm.vmbus.channel import Channel

BATCH_LIMIT = 64
"""Frames in a batch: what Linux handles in one turn of its own (NAPI)."""
READS_LIMIT = 4
"""Reads from the link in a turn of the loop."""
ANSWERS_LIMIT = 64
"""Answers to control messages that may wait for a slot: Linux has one request at a time."""


class Receiver:
    """The way of one card. `channels` are the open ones, by number; the primary one is there while `buffer` is."""

    def __init__(self, link: Link, card: Card, channels: dict[int, Channel], number: Callable[[], int]) -> None:
        self.buffer: ReceiveBuffer | None = None
        self.off = False
        """Whether all frames are dropped: the cable is unplugged, or the device is leaving."""
        self._link = link
        self._card = card
        self._channels = channels
        self._number = number
        self._staging = bytearray()
        self._frames: dict[int, deque[memoryview]] = {}  # read and not delivered yet, by channel
        self._answers: deque[bytes] = deque()
        self._slots: dict[int, int] = {}  # channel by slot that the guest has

    # Buffers

    def lend(self, buffer: ReceiveBuffer) -> None:
        """Use a receive buffer from now on."""
        self.revoke()
        self.buffer = buffer
        self._staging = bytearray(buffer.slot_size)

    def revoke(self) -> None:
        """Use the buffer no more."""
        self.buffer = None
        self._slots.clear()
        self._answers.clear()
        self._frames.clear()
        self._link.go_on()  # what comes is dropped

    def completed(self, transaction_id: int) -> None:
        """Free the slot of a packet that the guest has completed. Raises GuestProtocolError if it did not have it."""
        slot = transaction_id - 1
        if self.buffer is None:
            return
        self.buffer.give_back(slot)
        self._slots.pop(slot, None)
        self._send_answers()
        if self._frames:
            self._deliver()
        if not self._frames:
            self._link.go_on()

    def forget(self, channel: int) -> None:
        """Free the slots that a closed channel's packets had."""
        self._frames.pop(channel, None)
        for slot in [slot for slot, number in self._slots.items() if number == channel]:
            self.completed(slot + 1)

    @property
    def out(self) -> int:
        """Return the number of batches with the guest."""
        return len(self._slots)

    # Answers

    def answer(self, message: bytes) -> None:
        """Send an answer to a control message, or an indication. Raises GuestProtocolError if too many wait."""
        if self.buffer is None:
            raise GuestProtocolError("a control message without a receive buffer")
        if len(self._answers) >= ANSWERS_LIMIT:
            raise GuestProtocolError(f"{ANSWERS_LIMIT} answers wait for the receive buffer")
        self._answers.append(message)
        self._send_answers()

    def _send_answers(self) -> None:
        while self._answers and self.buffer is not None:
            slot = self.buffer.take(control=True)
            if slot is None:
                return
            message = self._answers.popleft()
            start = slot * self.buffer.slot_size
            self.buffer.write(start, message)
            self._send(0, slot, [(len(message), start)], nvsp.CONTROL)

    def _send(self, channel: int, slot: int, ranges: list[tuple[int, int]], kind: int) -> None:
        assert self.buffer is not None
        self._slots[slot] = channel
        try:
            self._channels[channel].send_pages(
                nvsp.RECEIVE_BUFFER_ID, ranges, nvsp.RNDIS[kind], transaction_id=slot + 1
            )
        except GuestError:
            self.buffer.give_back(slot)
            del self._slots[slot]
            raise

    # Frames

    @contained("network link")
    def frames_came(self) -> None:
        """Read from the link and deliver, a few batches."""
        for _ in range(READS_LIMIT):
            if self._frames:
                break
            frames = self._link.read()
            if not frames:
                return
            self._sort(frames)
            self._deliver()
        if self._frames:
            self._link.hold()  # before the next read, which would overwrite them
            if trace.held.on:
                trace.held(self._number())

    def _sort(self, frames: list[memoryview]) -> None:
        """Put frames into the queues of their channels; drop those that the guest does not want."""
        card, buffer = self._card, self.buffer
        if buffer is None or self.off or not card.filter:
            self._dropped(len(frames), "the guest's interface is down")
            return
        most = buffer.section_size - FRAME_OFFSET
        refused = 0
        for frame in frames:
            if ETHERNET_SIZE <= len(frame) <= most and card.accepts(frame):
                number = card.steering.channel(frame)
                if number not in self._channels:
                    number = 0
                self._frames.setdefault(number, deque()).append(frame)
            else:
                refused += 1
        if refused:
            self._dropped(refused, "too long, or for another address")

    def _dropped(self, count: int, reason: str) -> None:
        self._card.counters.dropped += count
        if trace.frames_dropped.on:
            trace.frames_dropped(self._number(), count, "to the guest", reason)

    def _deliver(self) -> None:
        """Deliver what was read, as far as there are slots."""
        while self._frames and self.buffer is not None:
            number, frames = next(iter(self._frames.items()))
            slot = self.buffer.take()
            if slot is None:
                return
            try:
                self._batch(self.buffer, slot, number, frames)
            except GuestError as error:
                self._dropped(len(frames), str(error))
                frames.clear()
            if not frames:
                del self._frames[number]

    def _batch(self, buffer: ReceiveBuffer, slot: int, number: int, frames: deque[memoryview]) -> None:
        """Write a batch of `frames` into a slot and send it."""
        staging, start = self._staging, slot * buffer.slot_size
        ranges: list[tuple[int, int]] = []
        end = size = 0
        while frames and len(ranges) < BATCH_LIMIT:
            position = end + 7 & ~7
            if position + FRAME_OFFSET + len(frames[0]) > buffer.slot_size:
                break
            frame = frames.popleft()
            length = write_packet(staging, position, frame, checked=self._link.checked)
            ranges.append((length, start + position))
            end = position + length
            size += len(frame)
        buffer.write(start, memoryview(staging)[:end])
        self._card.counters.received += len(ranges)
        self._card.counters.received_bytes += size
        if trace.frames_received.on:
            trace.frames_received(self._number(), number, len(ranges), size)
        self._send(number, slot, ranges, nvsp.DATA)
