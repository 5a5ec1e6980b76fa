"""Handles a guest's panic: ends the machine, keeps it running, or lets a loaded crash kernel run (kdump).

Source: Linux drivers/hv/hv_common.c: on Hyper-V a kernel reports its panic in the crash MSRs first
(`crash_kexec_post_notifiers`) and starts a loaded crash kernel after that. The report does not say whether one is
loaded.

    policy `stop`   Alive --report--> the machine ends
    policy `keep`   Alive --report--> Alive
    policy `auto`   Alive --report--> Undecided --page tables changed--> CrashKernel --report--> Undecided
                                      Undecided --a reset, CRASH_KERNEL_WAIT--> the machine ends
                                      Undecided --"end Kernel panic" on the console--> the machine ends

The kernel that panicked loops for ever in panic(), on its old page tables; kexec uses tables of its own, and the
crash kernel makes new ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

from pyvmm import contain, qapi
from pyvmm.hyperv.crash import CrashReport
from pyvmm.loop import Timer
from pyvmm.machine import events as trace
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot
from pyvmm.qapi import Emit

Policy = Literal["stop", "keep", "auto"]

POLL_PERIOD = 0.2
"""Polling period, in seconds, of the vCPUs after a panic; each poll pauses them briefly."""

CRASH_KERNEL_WAIT = 5.0
"""Seconds from the report after which a kernel that still runs counts as dead. Before kexec it waits up to one second
for the other CPUs to stop, and sends UNLOAD to the VMBus."""

EVENT_PERIOD = 1.0
"""Least time in seconds between two GUEST_PANICKED for a guest that panics in a loop. The last is always emitted."""

_OVER = re.compile(rb"---\[ end Kernel panic - not syncing|\bRebooting in \d+ seconds\.\.")
"""The last line that panic() prints, if no crash kernel was started."""


class Timing(Protocol):
    """The part of the guest-time interface that is used here."""

    clock: Callable[[], float]

    def after(self, seconds: float, callback: Callable[[], Any], /) -> Timer: ...


class PanicWatch:
    """Watches a guest for panics. All methods run on the loop's thread.

    `vcpu_snapshots()` returns the vCPUs' states, `console(offset)` the console's output as `Tail.since`; `emit` sends
    QMP events, `end(report)` ends the machine.
    """

    def __init__(
        self,
        policy: Policy,
        timing: Timing,
        *,
        vcpu_snapshots: Callable[[], list[VcpuSnapshot]],
        console: Callable[[int], tuple[int, bytes]],
        emit: Emit,
        end: Callable[[CrashReport], None],
    ) -> None:
        self.policy: Policy = policy
        self.report: CrashReport | None = None
        """The last panic since power-on."""
        self.count = 0  # of reports since power-on
        self._timing = timing
        self._vcpu_snapshots = vcpu_snapshots
        self._console = console
        self._emit = emit
        self._end = end
        self._tables: set[int] = set()
        self._reported = 0.0  # guest time
        self._console_from = 0
        self._timer: Timer | None = None  # polls while the outcome is undecided
        self._event_timer: Timer | None = None  # delays further events
        self._event_delayed = False

    @property
    def undecided(self) -> bool:
        """Whether a panic was reported and its outcome is not known yet."""
        return self._timer is not None

    def reported(self, report: CrashReport) -> None:
        """Handle a panic report in the crash MSRs; a guest may report more than one."""
        self.report = report
        self.count += 1
        self._emit_panicked()
        if self.policy == "stop":
            self._end(report)
        elif self.policy == "auto" and self._timer is None:
            self._tables = {each.page_table for each in self._vcpu_snapshots()}
            self._reported = self._timing.clock()
            self._console_from = self._console(0)[0] + len(self._console(0)[1])
            self._timer = self._timing.after(POLL_PERIOD, self._poll)

    def reset(self) -> None:
        """Handle a machine reset: forget all panics."""
        self._stop_polling()
        self.report, self.count = None, 0

    def close(self) -> None:
        """Stop watching."""
        self._stop_polling()
        if self._event_timer is not None:
            self._event_timer.cancel()

    def _stop_polling(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _emit_panicked(self) -> None:
        if self._event_timer is not None:
            self._event_delayed = True
            return
        report = self.report
        if report is None:
            return
        self._event_delayed = False
        self._event_timer = self._timing.after(EVENT_PERIOD, self._emit_delayed)
        self._emit(
            qapi.GUEST_PANICKED(
                {
                    "action": "poweroff" if self.policy == "stop" else "run",
                    "info": self._info(report),
                    "x-text": report.text or report.summary(),
                }
            )
        )

    def _emit_delayed(self) -> None:
        self._event_timer = None
        if self._event_delayed:
            self._emit_panicked()

    @staticmethod
    def _info(report: CrashReport) -> qapi.GuestPanicInformation:
        p0, p1, p2, p3, p4 = report.parameters
        return {"type": "hyper-v", "arg1": p0, "arg2": p1, "arg3": p2, "arg4": p3, "arg5": p4}

    @contain.contained("panic")
    def _poll(self) -> None:
        self._timer = None
        report = self.report
        assert report is not None, "the timer ends with the report"
        waited = self._timing.clock() - self._reported
        if any(each.page_table not in self._tables for each in self._vcpu_snapshots()):
            if trace.crash_kernel.on:
                trace.crash_kernel(round(waited, 1))
            self._emit(qapi.GUEST_CRASHLOADED({"action": "run", "info": self._info(report)}))
        elif waited >= CRASH_KERNEL_WAIT or _OVER.search(self._console(self._console_from)[1]):
            self._end(report)
        else:
            self._timer = self._timing.after(POLL_PERIOD, self._poll)
