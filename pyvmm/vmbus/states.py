"""States of the connection and of each channel, and what the server wants done: the vocabulary of `server`.

A state holds the data that means something only then; `NAME` is what clients and traces are told. The transitions are
drawn in `pyvmm.vmbus.server`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyvmm.trace import Event
from pyvmm.vmbus import protocol
from pyvmm.vmbus.offer import Offer

# Connection states


@dataclass(slots=True)
class Disconnected:
    """No guest has made contact, or it has left."""

    NAME: ClassVar[str] = "disconnected"


@dataclass(slots=True)
class Contacted:
    """A version is agreed on; the guest has not asked for the devices yet."""

    NAME: ClassVar[str] = "contacted"
    version: int
    vp: int  # where messages go


@dataclass(slots=True)
class Serving:
    """The guest knows the devices and is told of new ones."""

    NAME: ClassVar[str] = "serving"
    version: int
    vp: int


ConnectionState = Disconnected | Contacted | Serving

# Channel states


@dataclass(slots=True)
class Hidden:
    """The guest has not been told."""

    NAME: ClassVar[str] = "hidden"


@dataclass(slots=True)
class Offered:
    """The guest knows it and has not opened it."""

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
    """In use; events go to `target_vp`."""

    NAME: ClassVar[str] = "open"
    gpadl: int
    target_vp: int


@dataclass(slots=True)
class Rescinded:
    """Taken away; the guest has not released the relid yet."""

    NAME: ClassVar[str] = "rescinded"


ChannelState = Hidden | Offered | Opening | Open | Rescinded


@dataclass(slots=True, eq=False)
class ServedChannel:
    """A channel's place on the bus. `relid` is 0 while it waits for its predecessor to be released."""

    offer: Offer
    device_id: int  # the same for all channels of a device; the trace shows it where QEMU shows a pointer
    relid: int = 0
    state: ChannelState = field(default_factory=Hidden)

    @property
    def connection_id(self) -> int:
        """What the guest signals."""
        return protocol.FIRST_SIGNAL_CONNECTION + self.relid


# Actions, to be done in order


@dataclass(slots=True)
class Post:
    """Send this message to the guest; `event` with `values` is traced when that happens, as QEMU does."""

    vp: int
    payload: bytes
    event: Event | None = None
    values: tuple[int, ...] = ()


@dataclass(slots=True)
class DropMessages:
    """Forget messages that the guest has not seen yet."""


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
    """The guest is told that the channel is open: so is the device."""

    channel: ServedChannel


@dataclass(slots=True)
class CloseRings:
    """The channel is gone, its rings with it."""

    channel: ServedChannel


@dataclass(slots=True)
class Restarted:
    """A guest made contact: whatever kernel it is, it knows nothing of what its predecessor agreed on."""


@dataclass(slots=True)
class Gone:
    """The guest has let go of a channel that was taken away, or forgot the whole bus."""

    channel: ServedChannel


Action = Post | DropMessages | Restarted | OpenRings | Opened | CloseRings | Gone
