"""Packets that cross the tap `packet`: what a channel does instead of passing them on at once.

A handler may deliver a packet later, changed, or several times, so each delivery looks at the channel's state anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.errors import HostError
from pyvmm.tap import Item, Tap
from pyvmm.vmbus.packet import Packet
from pyvmm.vmbus.ring import BrokenRing, build_packet, parse_packet

if TYPE_CHECKING:
    from pyvmm.vmbus.channel import Channel


def tap_received(
    tap: Tap,
    channel: Channel,
    packet: Packet,
    receive: Callable[[Packet], object],
    guarded: Callable[[Callable[[], object]], object],
) -> None:
    """Pass a packet of the guest through the tap. `receive` gets what comes out of it, while the channel is open;
    `guarded(callback)` catches its exceptions.
    """

    def deliver(item: Item) -> None:
        if channel.is_open and not channel.broken:
            guarded(lambda: receive(parse_packet(item.data)))

    tap.cross("in", build_packet(packet), {"channel": channel.name, "relid": channel.relid}, deliver)


def tap_sent(
    tap: Tap, channel: Channel, packet: Packet, wrote: Callable[[bool], object], broke: Callable[[BrokenRing], object]
) -> None:
    """Pass a packet for the guest through the tap and store what comes out of it: any bytes for which there is room.

    `wrote(must_signal)` is called after each, `broke` if the ring's indices are invalid.
    """
    writer = channel.writer
    trailer = writer.trailer()

    def deliver(item: Item) -> None:
        data = item.data
        if data.endswith(trailer):  # unchanged: it holds the index at which the packet begins
            data = data[: -len(trailer)] + writer.trailer()
        if not channel.is_open or channel.broken:
            raise HostError(f"{channel.name}: the channel is closed or broken")
        try:
            if not writer.fits(len(data)):
                raise HostError(f"{channel.name}: no room for {len(data)} bytes in the ring")
            wrote(writer.store(data))
        except BrokenRing as error:
            broke(error)

    tap.cross("out", writer.build(packet), {"channel": channel.name, "relid": channel.relid}, deliver)
