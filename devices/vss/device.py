"""The VSS device: freezes the guest's file systems, and thaws them on every way out.

    Idle --freeze--> Freezing --answered well--> Frozen --thaw, or the limit--> Thawing --answered--> Idle
                     Freezing --answered badly--> Idle
                     Freezing --thaw, or the limit--> Abandoned --answered well--> Thawing
                                                      Abandoned --answered badly--> Idle
    any --channel closes--> Idle: the driver is gone, and its daemon thaws when it starts again

One request is out at a time; its answer may take minutes (FREEZE: 15 in Linux), or never come.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import IcType
from pyvmm.devices.vss import events as trace
from pyvmm.devices.vss.protocol import VERSIONS, Operation, VssBody
from pyvmm.errors import ConfigError
from pyvmm.loop import Timer
from pyvmm.transitions import Transitions, check
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer

Done = Callable[[str], object]
"""Called once with "" or with why it failed."""


class State(Enum):
    """What is under way."""

    IDLE = "idle"  # Nothing is frozen.
    FREEZING = "freezing"  # The guest was asked to freeze; the time limit runs.
    FROZEN = "frozen"  # The file systems are frozen.
    ABANDONED = "abandoned"  # The request for the freeze was given up: thaw once it is there.
    THAWING = "thawing"  # The guest was asked to thaw.


_CLOSED = "driver gone"
TRANSITIONS: Transitions = {
    State.IDLE: {State.IDLE: _CLOSED, State.FREEZING: "freeze asked for"},
    State.FREEZING: {
        State.IDLE: "refused, or driver gone",
        State.FROZEN: "answer: frozen",
        State.ABANDONED: "limit reached, or thaw asked for",
    },
    State.FROZEN: {State.IDLE: _CLOSED, State.THAWING: "thaw asked for, or limit reached"},
    State.ABANDONED: {State.IDLE: "answer: not frozen, or driver gone", State.THAWING: "answer: frozen after all"},
    State.THAWING: {State.IDLE: "answer, or driver gone"},
}


class Vss(IcDevice):
    """The device. `thawed_by_limit`: whether the last freeze ended by its limit."""

    OFFER: ClassVar[Offer] = Offer(
        "vss",
        type=UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
        instance=UUID("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
        signal_each=True,
    )
    KIND = IcType.VSS
    VERSIONS = VERSIONS
    LONGEST: ClassVar[int] = 600
    """Seconds for which a guest may be frozen: one whose log is on a frozen disk does not do much."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.thawed_by_limit = False
        self._done: Done | None = None  # of the freeze or thaw that is awaited
        self._limit: Timer | None = None

    def freeze(self, seconds: float, done: Done) -> None:
        """Freeze the guest's file systems for `seconds` at most, from now on. Raises ConfigError if it cannot be."""
        if self._link is None or not self._link.ready:
            raise ConfigError("the guest has no driver for VSS (hv_utils): nothing can be frozen")
        if self.state is not State.IDLE:
            raise ConfigError(f"the guest is {self.state.value} already: thaw it first")
        if not 0 < seconds <= self.LONGEST:
            raise ConfigError(f"{seconds:g} seconds: a guest may be frozen for {self.LONGEST} at most")
        self.thawed_by_limit = False
        self._done = done
        self._limit = self._link.channel.after(seconds, self._late)
        self._request(Operation.FREEZE, State.FREEZING)

    def thaw(self, done: Done) -> None:
        """Thaw the guest's file systems. Raises ConfigError if they are not frozen."""
        match self.state:
            case State.FROZEN:
                self._done = done
                self._begin_thaw()
            case State.FREEZING:
                self._finish("thawed before it was frozen")
                self._done = done
                self._enter(State.ABANDONED)
            case State.IDLE if self.thawed_by_limit:
                raise ConfigError("the guest was thawed when the limit was reached")
            case State.IDLE:
                raise ConfigError("the guest is not frozen")
            case _:
                raise ConfigError(f"the guest is {self.state.value}: it is being thawed")

    def _late(self) -> None:
        """Thaw: the limit is reached."""
        self.thawed_by_limit = True
        if self.state is State.FROZEN:
            self._begin_thaw()
        elif self.state is State.FREEZING:
            self._finish("the guest did not freeze in time: is its hv_vss_daemon busy?")
            self._enter(State.ABANDONED)

    # The guest's side

    def closed(self, channel: Channel) -> None:
        super().closed(channel)
        self._limit = None
        self._enter(State.IDLE)
        self._finish("the guest's driver is gone")

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        if trace.answered.on:
            trace.answered(self.state.value, status)
        match self.state:
            case State.FREEZING if status == 0:
                self._enter(State.FROZEN)
                self._finish("")
            case State.FREEZING:
                self._end(f"the guest refused with status {status:#x}: does its hv_vss_daemon run?")
            case State.ABANDONED if status == 0:
                self._begin_thaw()
            case State.ABANDONED:
                self._end("")
            case _:
                self._end("" if status == 0 else f"the guest could not thaw, status {status:#x}")

    def _begin_thaw(self) -> None:
        self._cancel_limit()
        self._request(Operation.THAW, State.THAWING)

    def _end(self, reason: str) -> None:
        self._cancel_limit()
        self._enter(State.IDLE)
        self._finish(reason)

    def _request(self, operation: Operation, state: State) -> None:
        assert self._link is not None
        if trace.asked.on:
            trace.asked(operation.name)
        self._enter(state)
        # One request at a time: there is room in any ring that Linux makes.
        if not self._link.request(IcType.VSS, VssBody(operation).build()):
            self._end("the guest's ring is full")

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _finish(self, reason: str) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(reason)

    def _enter(self, state: State) -> None:
        if trace.state.on and state is not self.state:
            trace.state(self.state.value, state.value)
        check(TRANSITIONS, self.state, state)
        self.state = state
