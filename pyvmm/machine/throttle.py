"""Back-pressure: slows down a guest's serial output while its reader is behind.

    level of the output (pyvmm.output)     what happens to the guest
    0  there is room                       nothing
    1  HIGH bytes are queued               the port's transmit interrupt is withheld: processes that write to the tty
                                           block, and everything else in the guest goes on
    2  LIMIT bytes are queued              its vCPUs are frozen: it sends without waiting for interrupts, as a kernel
                                           does with its messages, for which LIMIT - HIGH bytes are left

An output's level may rise on any thread, also on a vCPU's that holds the port's lock, so only a flag is set there and
the vCPUs are signalled. The loop then reads the level again and applies it, so that a fall meanwhile is not missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.loop import Loop
from pyvmm.trace import event

if TYPE_CHECKING:
    from pyvmm.devices.serial.uart import Serial
    from pyvmm.guest_time import GuestTimers

level_changed = event("machine.output_level", "ttyS{port} level {level}")

Level = Callable[[], int]


class Throttles:
    """Applies back-pressure to the serial ports of one machine. `freeze(on)` freezes the vCPUs, from any thread.
    Guest time stands still while they are frozen, as in a pause."""

    def __init__(
        self,
        loop: Loop,
        serials: Sequence[Serial],
        freeze: Callable[[bool], None],
        guest_time: GuestTimers | None = None,
    ) -> None:
        self._loop = loop
        self._serials = serials
        self._freeze = freeze
        self._guest_time = guest_time
        self._levels: dict[int, list[Level]] = {}
        self._pending: set[int] = set()  # ports whose level the loop will read

    def watch(self, port: int, level: Level) -> Callable[[], None]:
        """Throttle `port` by the output whose `level()` is given. Returns a callback for changes of the level."""
        self._levels.setdefault(port, []).append(level)
        return partial(self._changed, port)

    @property
    def frozen(self) -> bool:
        """Whether the vCPUs are to be frozen."""
        return any(self._level(port) > 1 for port in self._levels)

    def _level(self, port: int) -> int:
        return max(level() for level in self._levels[port])

    def _changed(self, port: int) -> None:
        level = self._level(port)
        if level:
            self._serials[port].holding = True
        if level > 1:
            self._freeze(True)
        if port not in self._pending:
            self._pending.add(port)
            self._loop.post(self._apply_level, port)

    def _apply_level(self, port: int) -> None:
        self._pending.discard(port)  # before reading the level: a later change posts again
        level = self._level(port)
        if level_changed.on:
            level_changed(port, level)
        self._serials[port].hold(level > 0)
        frozen = self.frozen
        self._freeze(frozen)
        if self._guest_time is not None and frozen:
            self._guest_time.freeze("output")
        elif self._guest_time is not None:
            self._guest_time.thaw("output")
