"""The states of the balloon machine. Each holds the data that is valid only in it.

`NAME` is the state's name for clients and traces, `QEMU_NAME` its name in QEMU's trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pyvmm.devices.balloon.hot_add import Grant
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.transitions import Transitions


@dataclass(slots=True)
class Closed:
    """No driver: not booted yet, or unbound."""

    NAME: ClassVar[str] = "Closed"
    QEMU_NAME: ClassVar[str] = "S_POST_RESET_CLOSED"


@dataclass(slots=True)
class AwaitVersion:
    """The channel is open; the driver offers versions, newest first, until one is accepted."""

    NAME: ClassVar[str] = "AwaitVersion"
    QEMU_NAME: ClassVar[str] = "S_VERSION"


@dataclass(slots=True)
class AwaitCaps:
    """A version is agreed; the driver's capabilities are awaited."""

    NAME: ClassVar[str] = "AwaitCaps"
    QEMU_NAME: ClassVar[str] = "S_CAPS"


@dataclass(slots=True)
class Idle:
    """No request to the guest is outstanding."""

    NAME: ClassVar[str] = "Idle"
    QEMU_NAME: ClassVar[str] = "S_IDLE"


@dataclass(slots=True)
class BalloonPosting:
    """A request for `pages` waits for room in the ring."""

    NAME: ClassVar[str] = "BalloonPosting"
    QEMU_NAME: ClassVar[str] = "S_BALLOON_RB_WAIT"
    pages: int
    tries: int  # since the guest last fulfilled a request, this one included
    deadline: float


@dataclass(slots=True)
class BalloonWaiting:
    """The request was sent; the guest answers in one or more responses."""

    NAME: ClassVar[str] = "BalloonWaiting"
    QEMU_NAME: ClassVar[str] = "S_BALLOON_REPLY_WAIT"
    asked: int
    got: int  # pages accepted
    tries: int
    attempt: int  # the request's attempt; a newer one may have begun meanwhile
    deadline: float


@dataclass(slots=True)
class BalloonPausing:
    """The guest stopped above the target; the next request is at `deadline`. See `devices.balloon.retry`."""

    NAME: ClassVar[str] = "BalloonPausing"
    QEMU_NAME: ClassVar[str] = "S_IDLE"
    tries: int
    deadline: float


@dataclass(slots=True)
class UnballoonPosting:
    """Ranges are being given back, in as many messages as needed; `unsent` ones are still out, in reverse order."""

    NAME: ClassVar[str] = "UnballoonPosting"
    QEMU_NAME: ClassVar[str] = "S_UNBALLOON_RB_WAIT"
    unsent: list[PageRange]
    left: int  # pages in `unsent`
    started: bool  # a message was sent, so one without `more` must follow
    deadline: float


@dataclass(slots=True)
class UnballoonWaiting:
    """All ranges were sent; the guest answers when it has freed them."""

    NAME: ClassVar[str] = "UnballoonWaiting"
    QEMU_NAME: ClassVar[str] = "S_UNBALLOON_REPLY_WAIT"
    deadline: float


@dataclass(slots=True)
class HotAddPosting:
    """A hot-add request waits for room in the ring; its memory is mapped."""

    NAME: ClassVar[str] = "HotAddPosting"
    QEMU_NAME: ClassVar[str] = "S_HOT_ADD_RB_WAIT"
    grant: Grant
    tries: int  # for this grant's addresses, this one included
    deadline: float


@dataclass(slots=True)
class HotAddWaiting:
    """The hot-add request was sent; the guest adds the memory block by block."""

    NAME: ClassVar[str] = "HotAddWaiting"
    QEMU_NAME: ClassVar[str] = "S_HOT_ADD_REPLY_WAIT"
    grant: Grant
    tries: int
    attempt: int  # the request's attempt
    asked_at: float
    deadline: float


@dataclass(slots=True)
class HotAddPausing:
    """The guest could not add the memory for now; the next request is at `deadline`."""

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

_BOUND: dict[Any, str] = {Closed: "channel closed", AwaitVersion: "channel opened"}
_PIECES: dict[Any, str] = {
    BalloonPosting: "target below",
    UnballoonPosting: "target above, pages out",
    HotAddPosting: "target above, no pages out",
}
_NEW_TARGET = "new target"

TRANSITIONS: Transitions = {
    Closed: _BOUND,
    AwaitVersion: {**_BOUND, AwaitCaps: "version taken"},
    AwaitCaps: {**_BOUND, Idle: "CAPABILITIES"},
    Idle: {**_BOUND, **_PIECES},
    BalloonPosting: {**_BOUND, BalloonWaiting: "room in the ring", Idle: f"{_NEW_TARGET}, or no room for long"},
    BalloonWaiting: {**_BOUND, Idle: "last response, or silence", BalloonPausing: "last response, pages missing"},
    BalloonPausing: {**_BOUND, Idle: f"later, or {_NEW_TARGET}"},
    UnballoonPosting: {
        **_BOUND,
        UnballoonWaiting: "last message sent",
        Idle: f"{_NEW_TARGET} before the first message, or no room for long",
    },
    UnballoonWaiting: {**_BOUND, Idle: "response, or silence"},
    HotAddPosting: {**_BOUND, HotAddWaiting: "room in the ring", Idle: f"{_NEW_TARGET}, or no room for long"},
    HotAddWaiting: {**_BOUND, Idle: "taken, refused, or silence", HotAddPausing: "not now"},
    HotAddPausing: {**_BOUND, Idle: f"later, or {_NEW_TARGET}"},
}
"""At Idle the next piece towards the target is requested at once."""
