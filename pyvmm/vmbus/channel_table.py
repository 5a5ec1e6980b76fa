"""Table of a bus's channels: by relid, by key, and those that wait for a relid.

A relid stays taken after its channel was removed until the guest releases it. A channel of the same key, and the
primary channel of the same instance, get theirs only then.
"""

from __future__ import annotations

from pyvmm.errors import ConfigError, GuestProtocolError
from pyvmm.vmbus.monitor_page import ID_LIMIT
from pyvmm.vmbus.offer import ChannelKey, Offer
from pyvmm.vmbus.protocol import RELID_MAX
from pyvmm.vmbus.states import Hidden, Rescinded, ServedChannel


class ChannelTable:
    """Index of channels; the server changes their states and sends the messages."""

    def __init__(self) -> None:
        self.by_relid: dict[int, ServedChannel] = {}  # includes removed channels not released by the guest yet
        self.by_key: dict[ChannelKey, ServedChannel] = {}  # added and not removed
        self.waiting: list[ServedChannel] = []  # without a relid until another is released

    def add(self, offer: Offer, device_id: int) -> ServedChannel:
        """Return a new channel; its relid is 0 if it has to wait. Raises ConfigError if there are RELID_MAX."""
        # Linux takes a primary channel for one that it knows when the instance is the same, whatever the type.
        same = [k for k in self.by_key if k == offer.key or (not offer.sub_channel and k.instance == offer.instance)]
        assert not same, f"{offer.name} is on the bus already"
        channel = ServedChannel(offer, device_id, monitor_id=self._monitor_id(offer))
        if self._must_wait_for_release(channel):
            self.waiting.append(channel)
        else:
            self._place(channel)
        self.by_key[offer.key] = channel
        return channel

    def _monitor_id(self, offer: Offer) -> int | None:
        """Return a monitor id for a channel that is to have one, else None. Raises ConfigError if all are used."""
        if not offer.monitored:
            return None
        used = {each.monitor_id for each in (*self.by_relid.values(), *self.by_key.values())}
        free = next((id for id in range(ID_LIMIT) if id not in used), None)
        if free is None:
            raise ConfigError(f"{offer.name}: {ID_LIMIT} channels use the monitor page already")
        return free

    def remove(self, channel: ServedChannel) -> bool:
        """Free the channel's key. Return False if it was waiting for a relid, which needs no further action."""
        if self.by_key.get(channel.offer.key) is channel:
            del self.by_key[channel.offer.key]
        if channel in self.waiting:
            self.waiting.remove(channel)
            return False
        return True

    def sub_channels(self, primary: ServedChannel) -> list[ServedChannel]:
        """Return the sub-channels of a primary channel's device; none for a sub-channel."""
        if primary.offer.sub_channel:
            return []
        name = primary.offer.key[:2]
        return [each for key, each in self.by_key.items() if key.sub_channel and key[:2] == name]

    def release(self, channel: ServedChannel) -> list[ServedChannel]:
        """Free the channel's relid. Return the channels that waited for it and have a relid now."""
        del self.by_relid[channel.relid]
        return self._place_waiting()

    def reset_relids(self) -> list[ServedChannel]:
        """Forget the guest's relids: drop sub-channels and rescinded channels, assign relids to waiting ones. Return
        the dropped channels that had a relid."""
        dropped = [c for c in self.by_relid.values() if isinstance(c.state, Rescinded) or c.offer.sub_channel]
        for channel in [*dropped, *(c for c in self.waiting if c.offer.sub_channel)]:
            if self.remove(channel):
                del self.by_relid[channel.relid]
        self._place_waiting()
        return dropped

    def known(self, relid: int) -> ServedChannel:
        """Return the channel. Raises GuestProtocolError if it was not offered to the guest."""
        channel = self.by_relid.get(relid)
        if channel is None or isinstance(channel.state, Hidden):
            raise GuestProtocolError(f"channel {relid} was not offered")
        return channel

    def _must_wait_for_release(self, channel: ServedChannel) -> bool:
        """Whether the guest must first release another channel, with which it would confuse this one."""
        offer = channel.offer
        return any(
            isinstance(c.state, Rescinded)
            and (c.offer.key == offer.key or (not offer.sub_channel and c.offer.instance == offer.instance))
            for c in self.by_relid.values()
        )

    def _place(self, channel: ServedChannel) -> None:
        relid = next((n for n in range(1, RELID_MAX + 1) if n not in self.by_relid), 0)
        if not relid:
            raise ConfigError(f"the VMBus is full: {RELID_MAX} channels")
        channel.relid = relid
        self.by_relid[relid] = channel

    def _place_waiting(self) -> list[ServedChannel]:
        placed = [each for each in self.waiting if not self._must_wait_for_release(each)]
        for channel in placed:
            self.waiting.remove(channel)
            self._place(channel)
        return placed
