"""States of the connection and of each channel, and the actions that the server requests.

A state holds the data that is valid only in it; `NAME` is its name for clients and traces. The transitions are drawn
in `pyvmm.vmbus.server`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyvmm.trace import Event
from pyvmm.transitions import Transitions
from pyvmm.vmbus import protocol
from pyvmm.vmbus.offer import Offer

# Connection states


@dataclass(slots=True)
class Disconnected:
    """No guest has made contact, or it has left."""

    NAME: ClassVar[str] = "disconnected"


@dataclass(slots=True)
class Contacted:
    """A version is agreed on; the guest has not requested offers yet."""

    NAME: ClassVar[str] = "contacted"
    version: int
    vp: int  # where messages go


@dataclass(slots=True)
class Serving:
    """The guest has requested offers and gets new ones."""

    NAME: ClassVar[str] = "serving"
    version: int
    vp: int


ConnectionState = Disconnected | Contacted | Serving

_LEFT = "INITIATE_CONTACT, UNLOAD or reset"
CONNECTION: Transitions = {
    Disconnected: {Disconnected: _LEFT, Contacted: "INITIATE_CONTACT, version served"},
    Contacted: {Disconnected: _LEFT, Serving: "REQUEST_OFFERS"},
    Serving: {Disconnected: _LEFT},
}
"""A contact resets first, so a served version goes through Disconnected."""

# Channel states


@dataclass(slots=True)
class Hidden:
    """The channel was not offered yet."""

    NAME: ClassVar[str] = "hidden"


@dataclass(slots=True)
class Offered:
    """The channel was offered, and is not open."""

    NAME: ClassVar[str] = "offered"


@dataclass(slots=True)
class Opening:
    """The rings are being made."""

    NAME: ClassVar[str] = "opening"
    open_id: int
    gpadl: int
    target_vp: int


@dataclass(slots=True)
class Open:
    """The channel is open. Events go to `target_vp`, and nowhere if that is protocol.NO_VP."""

    NAME: ClassVar[str] = "open"
    gpadl: int
    target_vp: int


@dataclass(slots=True)
class Rescinded:
    """The offer was rescinded; the guest has not released the relid yet."""

    NAME: ClassVar[str] = "rescinded"


ChannelState = Hidden | Offered | Opening | Open | Rescinded

CHANNEL: Transitions = {
    Hidden: {Hidden: _LEFT, Offered: "OFFER sent"},
    Offered: {Hidden: _LEFT, Opening: "OPEN", Rescinded: "device removed"},
    Opening: {Hidden: _LEFT, Open: "rings made", Offered: "no rings, or CLOSE", Rescinded: "device removed"},
    Open: {Hidden: _LEFT, Offered: "CLOSE", Rescinded: "device removed"},
    Rescinded: {},
}
"""A rescinded channel is forgotten at RELID_RELEASED, or when the guest leaves."""


@dataclass(slots=True, eq=False)
class ServedChannel:
    """A channel on the bus. `relid` is 0 while it waits for the release of its predecessor's."""

    offer: Offer
    device_id: int  # the same for all channels of a device; the trace shows it where QEMU shows a pointer
    relid: int = 0
    state: ChannelState = field(default_factory=Hidden)
    monitor_id: int | None = None  # if the guest signals it through the monitor page

    @property
    def connection_id(self) -> int:
        """Return the connection id that the guest signals."""
        return protocol.FIRST_SIGNAL_CONNECTION + self.relid


# Actions, to be done in order


@dataclass(slots=True)
class Post:
    """Send this message to the guest; `event` with `values` is traced then, as in QEMU."""

    vp: int
    payload: bytes
    event: Event | None = None
    values: tuple[int, ...] = ()
    relid: int = 0  # of the channel that it is about, if of one
    synic_type: int = protocol.SYNIC_MESSAGE_TYPE


@dataclass(slots=True)
class DropMessages:
    """Drop outgoing messages that are not in the guest's slot yet."""


@dataclass(slots=True)
class OpenRings:
    """Make the rings (their pages, header page first), then call `open_done`."""

    channel: ServedChannel
    send_pages: list[int]  # guest to host
    receive_pages: list[int]  # host to guest
    version: int
    user_data: bytes  # of OPEN, for the device


@dataclass(slots=True)
class Opened:
    """Notify the device that the channel is open; OPEN_RESULT was posted to the guest."""

    channel: ServedChannel


@dataclass(slots=True)
class CloseRings:
    """Close the channel and its rings."""

    channel: ServedChannel


@dataclass(slots=True)
class BusConnected:
    """Notify devices of a kernel's contact: agreements with its predecessor are void."""


@dataclass(slots=True)
class Gone:
    """Notify the bus that the guest has released a rescinded channel, or reset the whole bus."""

    channel: ServedChannel


Action = Post | DropMessages | BusConnected | OpenRings | Opened | CloseRings | Gone
