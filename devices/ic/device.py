"""Base class of the integration components: the link to the driver, its negotiation, and replies of the one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pyvmm.devices.ic.link import IcLink, IcReply, Negotiated
from pyvmm.devices.ic.protocol import IcType, Version
from pyvmm.errors import GuestProtocolError
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice


class IcDevice(VmbusDevice):
    """An integration component. `KIND` is the type of its requests, `VERSIONS` its message versions, newest first."""

    KIND: ClassVar[IcType]
    VERSIONS: Sequence[Version] = ()
    _link: IcLink | None = None

    @property
    def ready(self) -> bool:
        """Whether the guest's driver is bound and has agreed on versions."""
        return self._link is not None and self._link.ready

    def opened(self, channel: Channel) -> None:
        self._link = IcLink(channel, self.VERSIONS)
        self._link.negotiate()

    def closed(self, channel: Channel) -> None:
        self._link = None

    def received(self, payload: bytes) -> None:
        assert self._link is not None
        match self._link.read(payload):
            case Negotiated():
                self.agreed(self._link)
            case IcReply(self.KIND, body, status):
                self.answered(self._link, body, status)
            case other:
                raise GuestProtocolError(f"{self.OFFER.name}: unexpected {other}")

    def agreed(self, link: IcLink) -> None:
        """Handle the end of the negotiation: requests may be sent."""

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        """Handle the answer to a request."""
