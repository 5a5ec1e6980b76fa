"""The guest's frames on their way to the link: finished, queued while the link is full, completed when it has them.

    driver's packet --add--> queue --write--> link
                              each packet's last frame gone: its completion, by which the guest has the memory back

No frame is copied: the queue holds views of guest memory, which the guest leaves alone until the completion. A guest
whose link does not take its frames must not wait for ever: past QUEUE_LIMIT, or after STALL_SECONDS, frames are
dropped, as a card with a full queue does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pyvmm.devices.netvsc import events as trace
from pyvmm.devices.netvsc import nvsp
from pyvmm.devices.netvsc.card import Counters
from pyvmm.devices.netvsc.offload import ETHERNET_SIZE, finish, frame_size
from pyvmm.devices.netvsc.rndis import Sent
from pyvmm.errors import GuestError, WireError
from pyvmm.loop import Timer
from pyvmm.net.link import Link
from pyvmm.vmbus.channel import Channel
from pyvmm.wire import Buffer

QUEUE_LIMIT = 1024
"""Frames that may wait for the link. As many packets may await their completion (OWN_COMPLETIONS)."""
WRITE_LIMIT = 64
"""Frames given to the link at once."""
STALL_SECONDS = 2.0
"""Seconds after which the frames for a link that takes none are dropped: a guest that takes its interface down waits
for them, holding the lock of all network configuration."""


@dataclass(slots=True)
class _Frame:
    parts: list[Buffer]
    size: int
    channel: Channel
    transaction_id: int | None  # of the packet that is complete when this frame is gone


class Sender:
    """The queue of one card. `schedule(callback)` calls back in a later turn of the loop; `clock` is guest time."""

    def __init__(self, link: Link, counters: Counters, number: Callable[[], int]) -> None:
        self._link = link
        self._counters = counters
        self._number = number
        self._queue: deque[_Frame] = deque()
        self._scheduled = False
        self._blocked = False
        self._stall: Timer | None = None
        self.off = False
        """Whether all frames are dropped: the cable is unplugged, or the device is leaving."""

    @property
    def waiting(self) -> int:
        """Return the number of frames in the queue."""
        return len(self._queue)

    def add(self, channel: Channel, transaction_id: int | None, frames: list[Sent], mtu: int) -> None:
        """Queue a packet's frames, one at least, and complete the packet when the last is gone."""
        good: list[_Frame] = []
        for sent in frames:
            size = frame_size(sent)
            try:
                if size < ETHERNET_SIZE or (not sent.lso and size > mtu + 18):
                    raise WireError(f"a frame of {size} bytes")
                if self.off or len(self._queue) + len(good) >= QUEUE_LIMIT:
                    self._counters.send_dropped += 1
                    continue
                good.append(_Frame(finish(sent, vnet=self._link.vnet), size, channel, None))
            except WireError as error:
                self._counters.send_errors += 1
                if trace.frames_dropped.on:
                    trace.frames_dropped(self._number(), 1, "from the guest", str(error))
        if not good:
            _complete(channel, transaction_id)
            return
        good[-1].transaction_id = transaction_id
        self._queue += good
        if not self._scheduled and not self._blocked:
            self._scheduled = True
            channel.later(self._flush)

    def room(self) -> None:
        """Handle the link's message that it takes frames again."""
        self._blocked = False
        self._flush()

    def _flush(self) -> None:
        """Give the link what it takes."""
        self._scheduled = False
        while self._queue and not self._blocked:
            batch = [self._queue[at] for at in range(min(WRITE_LIMIT, len(self._queue)))]
            taken = self._link.write([frame.parts for frame in batch])
            self._blocked = taken < len(batch)
            size = sum(frame.size for frame in batch[:taken])
            self._counters.sent += taken
            self._counters.sent_bytes += size
            if taken and trace.frames_sent.on:
                trace.frames_sent(self._number(), taken, size)
            self._done(taken)
        self._watch()

    def _done(self, count: int) -> None:
        frames = [self._queue.popleft() for _ in range(count)]
        for frame in frames:
            _complete(frame.channel, frame.transaction_id)

    def _watch(self) -> None:
        """Have the queue dropped if the link stays full; each frame that it takes starts the time anew."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._blocked and self._queue:
            self._stall = self._queue[0].channel.after(STALL_SECONDS, lambda: self.drop("the link takes none"))

    def drop(self, reason: str) -> None:
        """Drop the queue and complete its packets."""
        count = len(self._queue)
        if count:
            self._counters.send_dropped += count
            if trace.frames_dropped.on:
                trace.frames_dropped(self._number(), count, "from the guest", reason)
            self._done(count)
        self._watch()

    def forget(self, channel: Channel) -> None:
        """Drop the frames of a channel that was closed."""
        self._queue = deque(frame for frame in self._queue if frame.channel is not channel)
        self._scheduled = False
        self._watch()
        if self._queue and not self._blocked:
            self._queue[0].channel.later(self._flush)


def _complete(channel: Channel, transaction_id: int | None) -> None:
    if transaction_id is not None:
        with suppress(GuestError):  # it does not read its ring: the completion is lost
            channel.complete(transaction_id, nvsp.COMPLETE[nvsp.Status.SUCCESS])
