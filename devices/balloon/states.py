"""The states of the balloon machine. Each owns what means something only then.

`NAME` is the state's name for clients and traces, `QEMU_NAME` its name in QEMU's trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyvmm.devices.balloon.hot_add import Grant
from pyvmm.devices.balloon.ranges import PageRange


@dataclass(slots=True)
class Closed:
    """No driver: not booted yet, or unbound."""

    NAME: ClassVar[str] = "Closed"
    QEMU_NAME: ClassVar[str] = "S_POST_RESET_CLOSED"


@dataclass(slots=True)
class AwaitVersion:
    """The channel is open; the driver offers versions, newest first, until one is taken."""

    NAME: ClassVar[str] = "AwaitVersion"
    QEMU_NAME: ClassVar[str] = "S_VERSION"


@dataclass(slots=True)
class AwaitCaps:
    """A version is agreed; the driver says what it can do."""

    NAME: ClassVar[str] = "AwaitCaps"
    QEMU_NAME: ClassVar[str] = "S_CAPS"


@dataclass(slots=True)
class Idle:
    """Nothing asked of the guest."""

    NAME: ClassVar[str] = "Idle"
    QEMU_NAME: ClassVar[str] = "S_IDLE"


@dataclass(slots=True)
class BalloonPosting:
    """A request for `pages` waits for room in the ring."""

    NAME: ClassVar[str] = "BalloonPosting"
    QEMU_NAME: ClassVar[str] = "S_BALLOON_RB_WAIT"
    pages: int
    tries: int  # since the guest last gave all of a request, this one included
    deadline: float


@dataclass(slots=True)
class BalloonWaiting:
    """The request is out; the guest answers in one or more responses."""

    NAME: ClassVar[str] = "BalloonWaiting"
    QEMU_NAME: ClassVar[str] = "S_BALLOON_REPLY_WAIT"
    asked: int
    got: int  # pages that really came
    tries: int
    attempt: int  # the attempt it was made for; a newer one may have begun meanwhile
    deadline: float


@dataclass(slots=True)
class BalloonPausing:
    """The guest stopped above the target; it is asked again at `deadline`. See `devices.balloon.retry`."""

    NAME: ClassVar[str] = "BalloonPausing"
    QEMU_NAME: ClassVar[str] = "S_IDLE"
    tries: int
    deadline: float


@dataclass(slots=True)
class UnballoonPosting:
    """Ranges on their way back, in as many messages as they need; `unsent` are on the books yet, next ones last."""

    NAME: ClassVar[str] = "UnballoonPosting"
    QEMU_NAME: ClassVar[str] = "S_UNBALLOON_RB_WAIT"
    unsent: list[PageRange]
    left: int  # pages in `unsent`
    started: bool  # a message is out, so one without `more` must follow
    deadline: float


@dataclass(slots=True)
class UnballoonWaiting:
    """All ranges are the guest's; it says so when it has freed them."""

    NAME: ClassVar[str] = "UnballoonWaiting"
    QEMU_NAME: ClassVar[str] = "S_UNBALLOON_REPLY_WAIT"
    deadline: float


@dataclass(slots=True)
class HotAddPosting:
    """A request to take more memory waits for room in the ring; the memory is there."""

    NAME: ClassVar[str] = "HotAddPosting"
    QEMU_NAME: ClassVar[str] = "S_HOT_ADD_RB_WAIT"
    grant: Grant
    tries: int  # for this grant's place, this one included
    deadline: float


@dataclass(slots=True)
class HotAddWaiting:
    """The guest makes the memory its own, block by block."""

    NAME: ClassVar[str] = "HotAddWaiting"
    QEMU_NAME: ClassVar[str] = "S_HOT_ADD_REPLY_WAIT"
    grant: Grant
    tries: int
    attempt: int  # the attempt it was made for
    asked_at: float
    deadline: float


@dataclass(slots=True)
class HotAddPausing:
    """The guest could not, just now; it is asked again at `deadline`."""

    NAME: ClassVar[str] = "HotAddPausing"
    QEMU_NAME: ClassVar[str] = "S_HOT_ADD_SETUP"
    tries: int
    deadline: float


State = (
    Closed
    | AwaitVersion
    | AwaitCaps
    | Idle
    | BalloonPosting
    | BalloonWaiting
    | BalloonPausing
    | UnballoonPosting
    | UnballoonWaiting
    | HotAddPosting
    | HotAddWaiting
    | HotAddPausing
)
