"""Time synchronisation: sends the guest the host's time, first to set its clock, then as periodic samples.

Source: Linux drivers/hv/hv_util.c, timesync_onchannelcallback(): SYNC steps the clock, SAMPLE feeds the PTP clock
/dev/ptp_hyperv and nothing else. Version 4 pairs the time with the reference counter, so that the guest can compute
the age of the sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.ic import events as trace
from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import IcType, TimeBody, TimeFlag, TimeReferenceBody, Version
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer

UNIX_EPOCH_100NS = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""


class TimeSync(IcDevice):
    """The time synchronisation device. `clock_ns()` is the host's time since 1970, `reference_time()` the partition's
    counter in units of 100 ns.

    Without a reference counter version 4 is not offered. `sync()` steps the guest's clock, after a pause for example.
    """

    OFFER: ClassVar[Offer] = Offer(
        "timesync",
        type=UUID("9527e630-d0ae-497b-adce-e80ab0175caf"),
        instance=UUID("2dd1ce17-079e-403c-b352-a1921ee207ee"),
    )
    KIND = IcType.TIME_SYNC
    VERSIONS: Sequence[Version] = ((3, 0), (1, 0))
    PERIOD: ClassVar[float] = 5.0  # seconds between samples, as in Hyper-V
    OUTSTANDING_LIMIT: ClassVar[int] = 4
    """Limit of samples not answered yet: no more are sent to a guest that has stopped."""

    def __init__(
        self, *, clock_ns: Callable[[], int] = time.time_ns, reference_time: Callable[[], int] | None = None
    ) -> None:
        self.samples = self.answers = 0
        self._clock_ns = clock_ns
        self._reference_time = reference_time
        if reference_time is not None:
            self.VERSIONS = ((4, 0), *self.VERSIONS)

    def opened(self, channel: Channel) -> None:
        self.samples = self.answers = 0
        super().opened(channel)

    def agreed(self, link: IcLink) -> None:
        self.sync()
        link.channel.every(self.PERIOD, self._sample)

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        self.answers += 1

    def sync(self) -> bool:
        """Make the guest set its clock now. Return False if the message cannot be sent to its driver."""
        return self._send(TimeFlag.SYNC)

    def _sample(self) -> None:
        if self._link is not None and self._link.outstanding < self.OUTSTANDING_LIMIT:
            self._send(TimeFlag.SAMPLE)

    def _send(self, flags: TimeFlag) -> bool:
        if self._link is None:
            return False
        now = self._clock_ns() // 100 + UNIX_EPOCH_100NS
        body = TimeBody(now, 0, 0, flags).build()
        if self._reference_time is not None and (self._link.version or (0, 0)) >= (4, 0):
            body = TimeReferenceBody(now, self._reference_time(), flags, 0, 0).build()
        if not self._link.request(IcType.TIME_SYNC, body):
            return False
        self.samples += 1
        if trace.time_sent.on:
            trace.time_sent(now, int(flags))
        return True
