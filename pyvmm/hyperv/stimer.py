"""Synthetic timers: four for each virtual processor, which interrupt it directly or send it a message.

Source: TLFS section 12.3; Linux arch/x86/kvm/hyperv.c, stimer_*(), whose behaviour this follows, and
drivers/clocksource/hyperv_timer.c for the guest: timer 0, one-shot, auto-enabled, in direct mode where it is offered.

    CONFIG   enable, periodic, lazy, auto-enable, direct mode and its vector, or the SINT that messages go to
    COUNT    a one-shot timer's expiration in reference time, a periodic one's period; 0 switches it off

    Off --enabled, COUNT set--> Armed --expires--> delivered --> Off (one-shot), Armed (periodic)
                                              \\--> Owed (one-shot: slot busy) --slot free, EOM--> delivered

Bounds: the loop serves a VP's timers at most once in MIN_GAP times the number of VPs, whatever period a guest sets;
periods that have passed meanwhile are one tick. A periodic timer whose slot is busy loses the tick. A one-shot timer
whose time has passed when it is set expires within that register access, on the vCPU's own thread and time.
`lazy` allows a late delivery, and changes nothing here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyvmm.errors import GuestProtocolError
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.clock import ReferenceClock
from pyvmm.hyperv.tlfs import MIN_SINT_VECTOR, StimerConfig, TimerMessage

TIMERS = 4
"""Timers of a VP."""

MIN_GAP = 200_000
"""Nanoseconds between two turns of the loop for the timers of a VP, in a machine of one: KVM's limit for a periodic
local APIC timer. More VPs share the same 5000 turns a second."""

_OFF = StimerConfig(0)
_WORD = (1 << 64) - 1

SendMessage = Callable[[int, int, bytes, bool], bool]
"""send(vp, sint, payload, wait) -> whether the message lies in the slot; `wait`: ask for EOM if it is busy."""


@dataclass(slots=True)
class Timer:
    """One timer's registers. `expires`: reference time, 0 while not armed; `owed`: expired, its message not sent."""

    config: StimerConfig = _OFF
    count: int = 0
    expires: int = 0
    owed: bool = False

    @property
    def armed(self) -> bool:
        return self.expires > 0 and not self.owed


class SyntheticTimers:
    """The timers of all VPs. Registers are accessed by vCPU threads, `due` and `retry` are called on the loop's.

    `interrupt(vp, vector)` raises an interrupt, `set_alarm(vp, when)` has `due(vp)` called at `when` (nanoseconds of
    the clock's own time, None: not at all). Both are called with the lock held, from any thread.
    """

    def __init__(
        self,
        vp_count: int,
        clock: ReferenceClock,
        *,
        send: SendMessage,
        interrupt: Callable[[int, int], None],
        set_alarm: Callable[[int, int | None], None],
        direct: bool,
    ) -> None:
        self._clock = clock
        self._send = send
        self._interrupt = interrupt
        self._set_alarm = set_alarm
        self._direct = direct
        self._gap = MIN_GAP * vp_count
        self._lock = threading.Lock()
        self._vp_count = vp_count
        self.reset()

    def reset(self) -> None:
        """Return to the power-on state. The owner of the alarms switches them off."""
        with self._lock:
            self.vps = [[Timer() for _ in range(TIMERS)] for _ in range(self._vp_count)]
            self._alarms: list[int | None] = [None] * self._vp_count
            self._next_turn = [0] * self._vp_count  # nanoseconds: no alarm before that

    def rearm(self) -> None:
        """Set all alarms anew, after the clock was shifted or the alarms were replaced."""
        with self._lock:
            self._alarms = [None] * self._vp_count
            self._next_turn = [0] * self._vp_count
            for vp in range(self._vp_count):
                self._arm(vp)

    # Registers, on the vCPU's thread. `register`: 0 and 1 are timer 0's CONFIG and COUNT, 2 and 3 timer 1's ...

    def read(self, vp: int, register: int) -> int:
        timer = self.vps[vp][register >> 1]
        return timer.count if register & 1 else timer.config

    def write(self, vp: int, register: int, value: int) -> None:
        """Set a register, and start the timer anew if it is enabled. An impossible value raises GuestProtocolError
        and changes nothing.
        """
        index = register >> 1
        with self._lock:
            timer = self.vps[vp][index]
            if register & 1:
                timer.count = value
                enable = bool(value) and (timer.config.enable or timer.config.auto_enable)
                timer.config = _with_source(timer.config.replace(enable=int(enable)))
            else:
                timer.config = self._checked(StimerConfig(value))
            timer.expires, timer.owed = 0, False
            if timer.config.enable and timer.count:
                self._start(vp, index, timer)
            self._arm(vp)

    def _checked(self, config: StimerConfig) -> StimerConfig:
        if config.direct and not self._direct:
            raise GuestProtocolError("synthetic timers have no direct mode (stimer-direct)")
        if config.direct and config.enable and config.vector < MIN_SINT_VECTOR:
            raise GuestProtocolError(f"synthetic timer: vector {config.vector} is below {MIN_SINT_VECTOR}")
        return _with_source(config)

    # On the loop's thread

    def due(self, vp: int) -> None:
        """Serve the timers that have expired. Called by the VP's alarm."""
        with self._lock:
            now = self._clock.ticks()
            self._alarms[vp] = None
            self._next_turn[vp] = self._clock.ns_at(now) + self._gap
            for index, timer in enumerate(self.vps[vp]):
                if timer.armed and timer.expires <= now:
                    self._expire(vp, index, timer, now)
            self._arm(vp)

    def retry(self, vp: int) -> None:
        """Send the messages that timers owe. Called after the guest wrote EOM, or changed its SynIC."""
        with self._lock:
            for index, timer in enumerate(self.vps[vp]):
                if timer.owed:
                    self._expire(vp, index, timer, self._clock.ticks())

    # With the lock held

    def _start(self, vp: int, index: int, timer: Timer) -> None:
        now = self._clock.ticks()
        if timer.config.periodic:
            timer.expires = now + timer.count
        else:
            timer.expires = timer.count
            if timer.count <= now:
                self._expire(vp, index, timer, now)

    def _expire(self, vp: int, index: int, timer: Timer, now: int) -> None:
        config = timer.config
        if config.direct:
            self._interrupt(vp, config.vector)
            delivered = True
        else:
            payload = TimerMessage(index, 0, timer.expires & _WORD, now).build()
            delivered = self._send(vp, config.sint, payload, not config.periodic)
        if trace.timer_expired.on:
            trace.timer_expired(vp, index, timer.expires, now - timer.expires, int(delivered))
        if config.periodic:
            timer.expires = now + timer.count - (now - timer.expires) % timer.count
        elif delivered:
            timer.config = config.replace(enable=0)
            timer.expires, timer.owed = 0, False
        else:
            timer.owed = True

    def _arm(self, vp: int) -> None:
        """Set the VP's alarm to its next expiration, but not before its next turn."""
        first = min((timer.expires for timer in self.vps[vp] if timer.armed), default=None)
        when = None if first is None else max(self._clock.ns_at(first), self._next_turn[vp])
        if when != self._alarms[vp]:
            self._alarms[vp] = when
            self._set_alarm(vp, when)


def _with_source(config: StimerConfig) -> StimerConfig:
    """Return `config`, disabled if it has neither direct mode nor a SINT: SINT 0 is none (TLFS 12.3.1)."""
    return config if config.direct or config.sint else config.replace(enable=0)
