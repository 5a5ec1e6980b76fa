"""Heartbeat: sends a number every two seconds; a guest that is alive sends back that number plus one.

Source: Linux drivers/hv/hv_util.c, heartbeat_onchannelcallback().
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.ic import events as trace
from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import HeartbeatBody, IcType
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer


class Health(Enum):
    """Health of the guest, by its heartbeat."""

    NO_CONTACT = "no contact"  # no driver, or it has not answered yet
    OK = "ok"
    LOST = "lost"  # it answered once, and stopped


class Heartbeat(IcDevice):
    """The heartbeat device. `health`, `beats` (answers) and `sequence` (the last answer) are for the monitor."""

    OFFER: ClassVar[Offer] = Offer(
        "heartbeat",
        type=UUID("57164f39-9115-4e78-ab55-382f3bd5422d"),
        instance=UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
    )
    KIND = IcType.HEARTBEAT
    VERSIONS = ((3, 0), (1, 0))
    PERIOD: ClassVar[float] = 2.0  # seconds, as in Hyper-V
    LOST_AFTER: ClassVar[float] = 10.0
    """Seconds without an answer. A vCPU that the host does not schedule for so long is unusable, too."""
    OUTSTANDING_LIMIT: ClassVar[int] = 16
    """Limit of unanswered beats. These few suffice to detect a driver that answers again."""

    def __init__(self) -> None:
        self.sequence = self.beats = 0
        self.health = Health.NO_CONTACT
        self._last_answer = 0.0

    def opened(self, channel: Channel) -> None:
        self.sequence = self.beats = 0
        self.health = Health.NO_CONTACT
        super().opened(channel)

    def agreed(self, link: IcLink) -> None:
        self._last_answer = link.channel.clock()
        link.channel.every(self.PERIOD, self._beat)

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        self.sequence = sequence = HeartbeatBody.parse(body).sequence
        self.beats += 1
        self._last_answer = link.channel.clock()
        if self.health is Health.LOST and trace.heartbeat_back.on:
            trace.heartbeat_back(sequence)
        self.health = Health.OK

    @property
    def silence(self) -> float:
        """Return the seconds since the last answer while a beat is out that the guest has not answered, else 0."""
        if self._link is None or not self._link.ready or not self._link.outstanding:
            return 0.0
        return self._link.channel.clock() - self._last_answer

    def _beat(self) -> None:
        assert self._link is not None
        silence = self._link.channel.clock() - self._last_answer
        if self.health is Health.OK and silence >= self.LOST_AFTER:
            self.health = Health.LOST
            if trace.heartbeat_lost.on:
                trace.heartbeat_lost(silence)
        if self._link.outstanding < self.OUTSTANDING_LIMIT:
            self._link.request(IcType.HEARTBEAT, HeartbeatBody(self.sequence).build())

    def closed(self, channel: Channel) -> None:
        super().closed(channel)
        self.health = Health.NO_CONTACT
