"""The signal oracle: more signals or interrupts than packets explain, in either direction.

A signal is for at least one packet, or for room; one in vain now and then is a race that both sides allow for.
Signals that come while the host is busy merge, so the numbers are lower than those of the guest's hypercalls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, Final

from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

FACTOR: Final = 3
"""Signals for a packet."""
SPARE: Final = 64
"""Signals in vain, whatever the packets: those of offers, of channels that open and close."""
INTERRUPTS_A_SECOND: Final = 10
"""Interrupts without a packet: messages of the bus, timers that come as messages."""


@dataclass(slots=True)
class _Counts:
    """What was counted at one moment. A channel's are (signals in, packets in, signals out, packets out)."""

    at: float = field(default_factory=time.monotonic)
    channels: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    interrupts: int | None = None


class Signals(Oracle):
    """Finds signal storms since the last check."""

    name: ClassVar[str] = "signals"
    FILES: ClassVar[tuple[str, ...]] = ("/proc/interrupts",)
    PATTERN: ClassVar[str] = "^ *HYP:"

    def __init__(self, vm: Bed) -> None:
        super().__init__(vm)
        self._before: _Counts | None = None

    def begin(self, answer: Answer | None) -> None:
        self._before = self._count(answer)

    def open_window(self) -> None:
        if self._before is None:
            self._before = self._count(None)

    def judge(self, answer: Answer | None) -> list[Finding]:
        now = self._count(answer)
        before, self._before = self._before or _Counts(), now
        found = []
        packets = 0
        names = {id(each): each.name for _, each in self.vm.machine.services.bus.open_channels()}
        for key, counts in now.channels.items():
            old = before.channels.get(key, (0, 0, 0, 0))
            signals_in, packets_in, signals_out, packets_out = (
                new - was for new, was in zip(counts, old, strict=True)
            )
            both = packets_in + packets_out
            packets += both
            for signals, who in ((signals_in, "the guest"), (signals_out, "the host")):
                if signals > FACTOR * both + SPARE:
                    found.append(self.finding(f"{who} signalled {names[key]} {signals} times for {both} packets"))
        if now.interrupts is not None and before.interrupts is not None:
            extra = now.interrupts - before.interrupts
            if extra > FACTOR * packets + SPARE + INTERRUPTS_A_SECOND * (now.at - before.at):
                found.append(self.finding(f"the guest had {extra} VMBus interrupts for {packets} packets"))
        return found

    def _count(self, answer: Answer | None) -> _Counts:
        counts = _Counts()
        for _, each in self.vm.machine.services.bus.open_channels():
            counts.channels[id(each)] = each.signals_in, each.packets_in, each.signals_out, each.packets_out
        lines = [] if answer is None else answer.files.get("/proc/interrupts", [])
        numbers = [int(word) for line in lines for word in line.split() if word.isdecimal()]
        counts.interrupts = sum(numbers) if numbers else None
        return counts
