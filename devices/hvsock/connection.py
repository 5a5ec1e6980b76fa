"""One connection between guest and host: a channel on the guest's side, a `HostEnd` on the other.

    offered --guest opens--> open --a FIN of each side, or one side lost--> ended: rescinded

A FIN ends one direction only; the other goes on. `hold` and `want` carry back pressure from one side to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm.devices.hvsock import events as trace
from pyvmm.devices.hvsock.protocol import DATA_LIMIT, FIN, Header, build_packet, parse_packet
from pyvmm.errors import GuestError, GuestProtocolError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer

PACKETS_PER_TURN = 8
"""Packets sent to the guest in a turn of the loop; more than a ring of Linux holds."""

LEAST_ROOM = 1024
"""Bytes of free room in the guest's ring below which nothing is sent: many short packets cost more than waiting."""

STUCK_SECONDS = 10.0
"""Guest time after which a guest that has sent a FIN and reads nothing counts as gone: Linux frees a socket that its
program has closed 8 s later, and tells the host nothing of it."""

HANGUP_POLL = 1.0
"""Guest time between the host's FIN and the first look whether the host's end is gone altogether, and between two
looks. A RESCIND directly after the FIN makes a write fail that the host has received: Linux's hv_ringbuffer_write
returns ENODEV if the channel is rescinded before it returns."""


class HostEnd(Protocol):
    """The host's end of a connection."""

    def start(self, connection: Connection) -> None:
        """Call `host_readable`, `host_drained` and `host_lost` from now on."""

    def want(self, on: bool) -> None:
        """Call `host_readable` while there is data to read, or not."""

    def read(self, limit: int) -> bytes | None:
        """Return up to `limit` bytes; empty at the end, None if there are none now."""

    def write(self, data: bytes) -> bool:
        """Take all of `data`. False: give no more until `host_drained` is called."""

    def finish(self) -> None:
        """Send no more after what was written: the guest's FIN."""

    @property
    def gone(self) -> bool:
        """Whether the other side has closed both directions."""

    def close(self, *, flush: bool) -> None:
        """Close, after what was written if `flush`."""


class Connection(VmbusDevice):
    """One connection. `guest_port` and `host_port` name its ends. `opened` is called when the guest has opened it:
    from then on it owns `end`. `ended` is called once, for the owner to take it off the bus.
    """

    def __init__(
        self,
        offer: Offer,
        *,
        guest_port: int,
        host_port: int,
        attach: Callable[[], HostEnd | None],
        ended: Callable[[Connection], None],
    ) -> None:
        self.guest_port, self.host_port = guest_port, host_port
        self.received_bytes = self.sent_bytes = 0
        self.was_opened = False
        self._offer = offer
        self._end: HostEnd | None = None
        self._attach, self._ended = attach, ended
        self._over = False
        self._guest_done = self._host_done = False
        self._channel: Channel | None = None
        self._waits_for_room = False

    @property
    def offer(self) -> Offer:
        return self._offer

    # The guest's side

    def opened(self, channel: Channel) -> None:
        self._channel = channel
        self.was_opened = True
        if trace.opened.on:
            trace.opened(self.guest_port, self.host_port)
        self._end = self._attach()
        if self._end is None:
            self.break_off("the host's program is gone")
        else:
            self._end.start(self)

    def received(self, payload: bytes) -> None:
        if self._over:
            return
        assert self._channel is not None and self._end is not None
        try:
            data = parse_packet(payload)
            if self._guest_done:
                raise GuestProtocolError("hvsock: a packet after the FIN")
        except GuestError as error:
            self.break_off(str(error))
            raise
        self.received_bytes += len(data)
        if data:
            if not self._end.write(data):
                self._channel.hold(True)
            return
        self._guest_done = True
        self._trace_finished("the guest")
        self._end.finish()
        if self._host_done:
            self._finish("closed")
        else:
            self._watch_for_a_stuck_guest(self._channel)

    def _watch_for_a_stuck_guest(self, channel: Channel) -> None:
        sent = [channel.packets_out]

        def look() -> None:
            if self._waits_for_room and channel.packets_out == sent[0]:
                self.break_off("the guest has closed its socket and reads no more")
            sent[0] = channel.packets_out

        channel.every(STUCK_SECONDS, look)

    def closed(self, channel: Channel) -> None:
        self.break_off("the guest closed the channel")

    def bus_connected(self) -> None:
        self.break_off("another kernel took the bus")

    def reset(self) -> None:
        self.break_off("the machine was reset")

    # The host's side

    def host_readable(self) -> None:
        """Send what the host's end has, as far as there is room in the guest's ring."""
        channel, end = self._channel, self._end
        if channel is None or end is None or self._over or self._host_done or self._waits_for_room:
            return
        if channel.broken:
            self.break_off(channel.broken)
            return
        for _ in range(PACKETS_PER_TURN):
            limit = min(channel.room() - Header.SIZE, DATA_LIMIT)
            if limit < LEAST_ROOM:
                self._wait_for_room(channel, end)
                return
            data = end.read(limit)
            if data is None:
                return
            if not data:
                end.want(False)
                self._host_ends(channel)
                return
            self.sent_bytes += len(data)
            channel.send(build_packet(data))

    def _wait_for_room(self, channel: Channel, end: HostEnd) -> None:
        def room() -> None:
            self._waits_for_room = False
            end.want(True)

        self._waits_for_room = True
        end.want(False)
        channel.when_room(min(2 * LEAST_ROOM, channel.max_payload), room)

    def _host_ends(self, channel: Channel) -> None:
        """Send a FIN once there is room for it."""
        self._trace_finished("the host")
        self._waits_for_room = True
        # Not from within `when_room`: what is sent there is only queued, and would be dropped with the channel.
        channel.when_room(len(FIN), lambda: channel.later(lambda: self._send_fin(channel)))

    def _send_fin(self, channel: Channel) -> None:
        if self._over:
            return
        self._waits_for_room = False
        self._host_done = True
        channel.send(FIN)
        if self._guest_done:
            self._finish("closed")
        else:
            channel.every(HANGUP_POLL, self._look_for_hangup)

    def _look_for_hangup(self) -> None:
        if not self._over and self._end is not None and self._end.gone:
            self._finish("the host's end was closed")

    def host_drained(self) -> None:
        """Go on reading the guest's packets."""
        if self._channel is not None:
            self._channel.hold(False)

    def host_lost(self, reason: str) -> None:
        """End the connection: the host's end failed."""
        self.break_off(reason)

    # The end

    def break_off(self, reason: str) -> None:
        """End the connection at once. Harmless after its end."""
        self._finish(reason, flush=self._guest_done)

    def _finish(self, reason: str, *, flush: bool = True) -> None:
        if self._over:
            return
        self._over = True
        if trace.ended.on:
            trace.ended(self.guest_port, self.host_port, reason, self.received_bytes, self.sent_bytes)
        if self._end is not None:
            self._end.close(flush=flush)
        self._ended(self)

    def _trace_finished(self, side: str) -> None:
        if trace.finished.on:
            trace.finished(self.guest_port, self.host_port, side)
