"""Detects a guest that dies early in boot: it prints nothing, panics early, or resets in a loop.

Until Linux has loaded hv_vmbus a panic is not reported in the crash MSRs, and an early fault not even on the console.
From the first contact with the VMBus on nothing here applies: the kernel runs, and reports panics itself.

    power-on --`silence` s without output, not idle--> a notice
             --panic() ended on the console-------> the guest died
             --reset within EARLY_RESET, RESETS_NOTICED times in a row--> a notice; RESETS_LIMIT times--> it died
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from pyvmm import contain
from pyvmm.guest_text import one_line
from pyvmm.loop import Timer
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot

POLL_PERIOD = 0.5
"""Polling period, in seconds of guest time, of a guest that has made no contact."""

EARLY_RESET = 10.0
"""Seconds. A guest that resets itself sooner, without contact with the VMBus, has failed early in boot."""

BUSY_POLLS = 3
"""Polls that must all find a silent guest busy before the notice: an idle guest may be busy at a single poll."""

RESETS_NOTICED = 3
RESETS_LIMIT = 10
"""Numbers of consecutive early resets from which on a notice is given, and the machine ended."""

_TAIL = 4096
"""Bytes at the end of the console's output that are searched for a panic's last line."""

_ENDED = re.compile(r"(?:^|\] )---\[ end (Kernel panic - not syncing.*?)(?: \]---)?$")
_PANIC = re.compile(r"Kernel panic - not syncing.*")


class Timing(Protocol):
    """The part of the guest-time interface that is used here."""

    clock: Callable[[], float]

    def every(self, period: float, callback: Callable[[], Any], /) -> Timer: ...


class BootWatch:
    """Watches one machine's guest. All methods run on the loop's thread.

    `console(offset)` is `Tail.since`, `contacts()` counts kernels' contacts with the VMBus. `notice(line)` shows the
    user a line; `died(line)` reports that the guest is dead, and returns whether that ended the machine. `silence` is
    in seconds of guest time.
    """

    def __init__(
        self,
        timing: Timing,
        *,
        console: Callable[[int], tuple[int, bytes]],
        contacts: Callable[[], int],
        vcpu_snapshots: Callable[[], list[VcpuSnapshot]],
        notice: Callable[[str], None],
        died: Callable[[str], bool],
        silence: float,
    ) -> None:
        self._timing = timing
        self._console = console
        self._contacts = contacts
        self._vcpu_snapshots = vcpu_snapshots
        self._notice = notice
        self._died = died
        self._silence = silence
        self._timer: Timer | None = None
        self._powered_on_at = 0.0
        self._offset = self._end = 0  # of the console, at power-on and at the last poll
        self._known = 0  # contacts before power-on
        self._early_resets = 0
        self._busy_polls: int | None = 0  # of a silent guest; None after the notice, or once found idle

    def power_on(self) -> None:
        """Start watching: the vCPUs are about to execute the first instruction."""
        self._powered_on_at = self._timing.clock()
        self._offset = self._end = self._console_end()
        self._known = self._contacts()
        self._busy_polls = 0
        self.close()
        self._timer = self._timing.every(POLL_PERIOD, self._poll)

    def reset(self, by_guest: bool) -> bool:
        """Count a reset before it happens. Return False if the guest was reported dead and the machine ended."""
        short = self._timing.clock() - self._powered_on_at < EARLY_RESET and not self._has_contact()
        self._early_resets = self._early_resets + 1 if by_guest and short else 0
        if self._early_resets < RESETS_NOTICED:
            return True
        line = f"it reset itself {self._early_resets} times in a row before it reached the VMBus"
        reason = self._panic()
        if reason:
            line += f": {reason}"
        if self._early_resets >= RESETS_LIMIT:
            self._early_resets = 0
            return not self._died(line)
        if self._early_resets == RESETS_NOTICED:
            self._notice(
                f"the guest resets in a loop: {line}; --no-reboot ends at the first reset, "
                "--append 'ignore_loglevel' shows more"
            )
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _has_contact(self) -> bool:
        return self._contacts() != self._known

    def _console_end(self) -> int:
        begin, data = self._console(0)
        return begin + len(data)

    @contain.contained("boot watch")
    def _poll(self) -> None:
        if self._has_contact():
            self.close()
            return
        before, self._end = self._end, self._console_end()
        if self._end == self._offset:
            self._check_silence()
        elif self._end == before:
            ended = _ENDED.search(self._last_line())
            if ended is not None:
                self.close()
                self._died(one_line(ended[1]))

    def _check_silence(self) -> None:
        if self._busy_polls is None or self._timing.clock() - self._powered_on_at < self._silence:
            return
        vcpus = self._vcpu_snapshots()
        if any(each.is_idle for each in vcpus):
            self._busy_polls = None  # the kernel runs, with another console or none
            return
        self._busy_polls += 1
        if self._busy_polls < BUSY_POLLS:
            return
        self._busy_polls = None
        how = "and is halted with interrupts off" if all(each.is_stuck for each in vcpus) else "but runs"
        self._notice(
            f"the guest has printed nothing for {self._silence:g} s and has not contacted the VMBus, {how}; "
            "--append 'earlyprintk=ttyS0 ignore_loglevel' may show why"
        )

    def _lines(self) -> list[str]:
        data = self._console(max(self._offset, self._console_end() - _TAIL))[1]
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]

    def _last_line(self) -> str:
        return (self._lines() or [""])[-1]

    def _panic(self) -> str:
        """Return the panic's line in the guest's output since power-on."""
        for line in reversed(self._lines()):
            if (found := _PANIC.search(line)) is not None and "---[ end" not in line:
                return one_line(found[0])
        return ""
