"""Stops a machine where something passes between guest and host, and lets it go on to the next.

    prelaunch --go(kind)--> running --something of that kind crosses--> stopped --go(kind)--> running ... ended

`go` and the reports belong to the loop's thread. Items cross on any thread; `_lock` guards what they share.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from pyvmm import trace
from pyvmm.contain import contain
from pyvmm.errors import GuestError, HostError
from pyvmm.loop import Pending
from pyvmm.step.where import caller
from pyvmm.tap import Deliver, Item

if TYPE_CHECKING:
    from pyvmm.machine import Machine
    from pyvmm.machine.runner import VcpuThread

EVENTS_LIMIT: Final = 400
"""Trace events that are kept between two stops: the last ones are shown."""
HELD_LIMIT: Final = 1024
"""Items that are held while the machine is stopped; more pass, as the guest is paused and can cause only few."""
SUBSCRIBED: Final = "*,!machine.vcpu_exit,!machine.memory,!serial.*,!control.*,!monitor_*,!handle_qmp_command"
_POLL: Final = 0.05
"""Seconds between two looks of a blocked vCPU's thread at whether it is wanted elsewhere."""


class Kind(Enum):
    """What a step goes to."""

    EXIT = "exit"
    HYPERCALL = "hypercall"
    MESSAGE = "message"
    PACKET = "packet"
    EVENT = "event"
    TRACE = "trace event"
    ANY = "hypercall, message, packet or event"
    END = "end"


TAPS: Final = {
    "hypercall": Kind.HYPERCALL,
    "message": Kind.MESSAGE,
    "packet": Kind.PACKET,
    "event": Kind.EVENT,
    "eom": Kind.EVENT,
    "interrupt": Kind.EVENT,
}
"""The taps that a stepper attaches to, and the kinds of what crosses them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to stop at: the `count`th of a kind; `pattern` selects trace events."""

    kind: Kind
    count: int = 1
    pattern: str = ""

    def fits(self, kind: Kind) -> bool:
        """Return whether something of this kind counts."""
        return kind is self.kind or (self.kind is Kind.ANY and kind not in (Kind.EXIT, Kind.TRACE))


@dataclass(slots=True)
class Stopped:
    """Where the machine stands: what is about to happen, or why it stopped.

    `item` is what crosses a tap; `exit` the index of the vCPU, the exit's name and its fields; `record` a trace event
    that has happened. `note` tells of a stop for another reason.
    """

    item: Item | None = None
    exit: tuple[int, str, Mapping[str, Any]] | None = None
    record: trace.Record | None = None
    note: str = ""
    sender: tuple[str, int] | None = None
    """File and line of our code that sends the item, for one to the guest."""
    vcpu: int | None = None
    at: float = 0.0
    """Seconds since the start."""
    number: int = 0


@dataclass(slots=True)
class _Held:
    item: Item
    deliver: Deliver
    kind: Kind
    sender: tuple[str, int] | None = None


@dataclass(slots=True, eq=False)
class _Blocked:
    """A vCPU's thread that waits in a hypercall or at an exit."""

    stop: Stopped
    released: threading.Event = field(default_factory=threading.Event)


class Stepper:
    """Steps one machine, whose configuration says `paused`. `on_stop(stopped)` is called on the loop at each stop."""

    def __init__(self, machine: Machine, on_stop: Callable[[Stopped], object]) -> None:
        self.machine = machine
        self.events: deque[trace.Record] = deque(maxlen=EVENTS_LIMIT)
        """The trace events since the last stop."""
        self._on_stop = on_stop
        self._began = time.monotonic()
        self._lock = threading.RLock()
        self._wanted: Wanted | None = None  # None: stopped, or not started
        self._left = 0  # of the wanted kind, until the stop
        self._held: deque[_Held] = deque()
        self._fresh: list[_Held] | None = None  # what the item being delivered causes, while there is one
        self._blocked: _Blocked | None = None
        self._reason: Stopped | None = None
        self._shown: Item | None = None  # the item at which the machine stands
        self._numbers = 0
        self._loop_thread = threading.get_ident()
        self._settling = Pending(machine.loop, self._settle)
        self._exits_on = False
        for name in TAPS:
            machine.taps[name].attach(self._call if name == "hypercall" else self._cross)
        machine.taps.resets.append(self._reset)
        trace.subscribe(SUBSCRIBED, self._note)

    @property
    def stopped(self) -> bool:
        """Return whether the machine stands."""
        return self._wanted is None

    @property
    def held(self) -> int:
        """Return how many items wait behind the one at which the machine stands."""
        return max(0, len(self._held) - 1)

    @property
    def blocked_vcpu(self) -> int | None:
        """Return the vCPU that stands in a hypercall or at an exit."""
        return self._blocked.stop.vcpu if self._blocked is not None else None

    def close(self) -> None:
        """Let everything pass from now on."""
        for name in TAPS:
            self.machine.taps[name].detach(self._call if name == "hypercall" else self._cross)
        trace.unsubscribe(self._note)
        self._watch_exits(False)
        if self._reset in self.machine.taps.resets:
            self.machine.taps.resets.remove(self._reset)
        with self._lock:
            self._held.clear()
        self._release()

    # On the loop's thread

    def go(self, wanted: Wanted) -> None:
        """Go on to what is wanted; `on_stop` is called there, unless the machine ends before."""
        machine = self.machine
        self.events.clear()
        self._watch_exits(wanted.kind is Kind.EXIT)
        with self._lock:
            self._wanted, self._left, self._reason = wanted, wanted.count, None
            shown, self._shown = self._shown, None
            current = self._held.popleft() if self._held and self._held[0].item is shown else None
        if current is not None:
            self._deliver(current)
        self._drain()
        if self._reason is not None or machine.outcome is not None:
            return  # `_settle` reports the next stop; the vCPUs stay where they are
        if machine.state == "prelaunch":
            machine.resume()
        elif machine.state == "debug":
            machine.set_state("running")
            machine.guest_time.thaw()
        for thread in machine.slot.threads:
            thread.request(hold=False)
        self._release()

    def interrupt(self) -> None:
        """Stop where the machine is."""
        self._stop(Stopped(note="stopped by Ctrl-C"))

    def _drain(self) -> None:
        """Deliver what was held, up to something that is wanted."""
        while True:
            with self._lock:
                if not self._held or self._reason is not None:
                    return
                head = self._held[0]
                if self._counts(head.kind):
                    self._stop(self._stop_of(head))
                    return
                self._held.popleft()
            self._deliver(head)

    def _deliver(self, held: _Held) -> None:
        """Hand an item on. What it causes at once goes before what was held behind it."""
        self._fresh = []
        try:
            held.deliver(held.item)
        except (GuestError, HostError) as error:
            self._stop(Stopped(note=f"{held.item.point} was refused: {error}"))
        except Exception as error:
            contain(f"stepping over {held.item.point}", error)
        finally:
            with self._lock:
                fresh, self._fresh = self._fresh, None
                self._held.extendleft(reversed(fresh))

    def _settle(self) -> None:
        """Hold the vCPUs and report the stop, once the loop has nothing else to do with it."""
        machine = self.machine
        reason = self._reason
        if reason is None or self._wanted is None or machine.outcome is not None:
            return
        blocked = self._blocked
        others = [each for each in machine.slot.threads if blocked is None or each.index != blocked.stop.vcpu]
        for thread in others:
            thread.request(hold=True)
        for thread in others:
            thread.wait_parked()
        if machine.state == "running":
            machine.guest_time.freeze()
            machine.set_state("debug")
        self._wanted, self._shown = None, reason.item
        self._numbers += 1
        reason.number, reason.at = self._numbers, time.monotonic() - self._began
        self._on_stop(reason)

    def _reset(self) -> None:
        """Forget what belongs to a guest that is gone."""
        with self._lock:
            self._held.clear()
        self._release()
        if self.stopped:  # the machine runs again, whatever the prompt shows
            self._wanted = Wanted(Kind.END)
        self._stop(Stopped(note="the machine was reset"))

    def _release(self) -> None:
        """Let the vCPU go on that stands in a hypercall or at an exit."""
        blocked, self._blocked = self._blocked, None
        if blocked is not None:
            blocked.released.set()

    # On any thread

    def _stop(self, why: Stopped) -> bool:
        """Ask for a stop; return False if there is one already."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = why
        self._settling.ask()
        return True

    def _counts(self, kind: Kind) -> bool:
        """Return whether something of this kind is what the step goes to; counts it if it is of the kind."""
        wanted = self._wanted
        if wanted is None or self._reason is not None or not wanted.fits(kind):
            return False
        self._left -= 1
        return self._left <= 0

    def _stop_of(self, held: _Held) -> Stopped:
        return Stopped(item=held.item, sender=held.sender)

    def _cross(self, item: Item, deliver: Deliver) -> Any:
        """Handle what crosses a tap, hypercalls apart: deliver it at once, or hold it."""
        kind = TAPS[item.point.partition(".")[0]]
        with self._lock:
            by_delivery = self._fresh is not None and threading.get_ident() == self._loop_thread
            queue = self._fresh if by_delivery and self._fresh is not None else self._held
            standing = self._reason is not None or self._wanted is None
            if len(queue) < HELD_LIMIT and (queue or standing or self._counts(kind)):
                sender = caller() if item.point.endswith(".out") else None
                made = _Held(item, deliver, kind, sender)
                if not queue and not standing and not by_delivery:
                    self._stop(self._stop_of(made))
                elif not queue and by_delivery and not standing:
                    self._left += 1  # counted once more by `_drain`
                queue.append(made)
                return None
        return deliver(item)

    def _call(self, item: Item, deliver: Deliver) -> Any:
        """Handle a hypercall, on its vCPU's thread."""
        if item.point == "hypercall.in":
            self._block(Kind.HYPERCALL, Stopped(item=item))
        return deliver(item)

    def _exit(self, record: trace.Record) -> None:
        """Handle an exit, on its vCPU's thread."""
        vcpu, name, detail = record.values
        self._block(Kind.EXIT, Stopped(exit=(vcpu, name, detail)))

    def _block(self, kind: Kind, stop: Stopped) -> None:
        """Wait on a vCPU's thread at what is wanted, until the next step, or until the thread is wanted elsewhere."""
        thread = self._own_thread()
        if thread is None:
            return
        stop.vcpu = thread.index
        with self._lock:
            if not self._counts(kind):
                return
            blocked = self._blocked = _Blocked(stop)
            self._stop(stop)
        while not blocked.released.wait(_POLL):
            if thread.vcpu.immediate_exit:  # a pause, a reset or the machine's end
                break

    def _own_thread(self) -> VcpuThread | None:
        here = threading.get_native_id()
        return next((each for each in self.machine.slot.threads if each.native_id == here), None)

    def _note(self, record: trace.Record) -> None:
        """Keep a trace event, and stop at one that is wanted."""
        self.events.append(record)
        wanted = self._wanted
        if (
            wanted is None
            or wanted.kind is not Kind.TRACE
            or not trace.Pattern(wanted.pattern).matches(record.event.name)
        ):
            return
        with self._lock:
            if self._counts(Kind.TRACE):
                self._stop(Stopped(record=record))

    def _watch_exits(self, on: bool) -> None:
        """Have exits reported only while one is wanted: it turns off shortcuts that answer exits without this."""
        if on != self._exits_on:
            self._exits_on = on
            if on:
                trace.subscribe("machine.vcpu_exit", self._exit)
            else:
                trace.unsubscribe(self._exit)
