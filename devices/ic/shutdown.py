"""Shutdown: requests an orderly power-off or restart, as the guest's own `poweroff` or `reboot` do.

Source: Linux drivers/hv/hv_util.c, shutdown_onchannelcallback(): it answers first, then runs the orderly command; an
unknown flag is answered with FAILED.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.ic import events as trace
from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import IcType, ShutdownBody, ShutdownFlag
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer

Answered = Callable[[int], object]


class ShutdownKind(StrEnum):
    """Kind of a shutdown request. The guest does not wait for programs that refuse to end."""

    POWER_OFF = "poweroff"
    RESTART = "restart"


_FLAGS = {
    ShutdownKind.POWER_OFF: ShutdownFlag.POWER_OFF | ShutdownFlag.FORCE,
    ShutdownKind.RESTART: ShutdownFlag.RESTART | ShutdownFlag.FORCE,
}


class Shutdown(IcDevice):
    """The shutdown device. system_powerdown calls `request()` while the guest's driver is bound (`ready`)."""

    OFFER: ClassVar[Offer] = Offer(
        "shutdown",
        type=UUID("0e0b6031-5213-4934-818b-38d90ced39db"),
        instance=UUID("b6650ff7-33bc-4840-8048-e0676786f393"),
        signal_each=True,
    )
    KIND = IcType.SHUTDOWN
    VERSIONS = ((3, 2), (3, 1), (3, 0), (1, 0))
    REASON: ClassVar[int] = 0x80040000  # SHTDN_REASON_FLAG_PLANNED and "other"; Linux only prints it
    TIMEOUT: ClassVar[int] = 300  # seconds the guest may take; informative only

    def __init__(self) -> None:
        self.status: int | None = None  # of the last answer
        self._asked: list[tuple[ShutdownKind, Answered]] = []

    def request(self, kind: ShutdownKind | str, answered: Answered = lambda status: None) -> bool:
        """Send a shutdown request; `answered(status)` is called with the guest's answer, 0 for success.

        Returns False if no driver is bound, or a request is outstanding already.
        """
        kind = ShutdownKind(kind)
        if self._link is None or self._asked:
            return False
        body = ShutdownBody(self.REASON, self.TIMEOUT, _FLAGS[kind]).build()
        if not self._link.request(IcType.SHUTDOWN, body):
            return False
        self._asked.append((kind, answered))
        return True

    def opened(self, channel: Channel) -> None:
        self.status = None
        super().opened(channel)

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        kind, answered = self._asked.pop()
        self.status = status
        if trace.shutdown_answered.on:
            trace.shutdown_answered(kind.value, status)
        answered(status)

    def closed(self, channel: Channel) -> None:
        super().closed(channel)
        self._asked.clear()
