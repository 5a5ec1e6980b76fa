"""The hv-balloon device: joins the state machine and the ledger to a channel, and serves the monitor.

Source: Linux drivers/hv/hv_balloon.c; QEMU hw/hyperv/hv-balloon.c for the GUID and the monitor's side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.balloon.hot_add import Window
from pyvmm.devices.balloon.ledger import PAGE_SHIFT, PAGE_SIZE, Discard, Ledger
from pyvmm.devices.balloon.plan import ResizeOutcome, ResizePlan
from pyvmm.devices.balloon.protocol import StatusReport, parse_guest_message
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.devices.balloon.state_machine import BalloonMachine, Changed
from pyvmm.devices.balloon.tuning import Tuning
from pyvmm.qapi import BalloonState, HotAddInfo
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer


class BalloonDevice(VmbusDevice):
    """hv-balloon. All calls belong to the loop's thread; sizes are bytes.

    `ram` are the (gpa, size) ranges of boot RAM, whole pages; `discard(gpa, size)` returns a part of it to the host
    (`GuestMemory.discard`), in multiples of `granule` bytes. `window` is the address space for hot-added memory.

    Listeners are appended to `on_change` (actual), `on_finish` (the outcome of an attempt; a second one if background
    retries followed) and `on_status` (available, committed).
    """

    OFFER: ClassVar[Offer] = Offer(
        "hv-balloon",
        type=UUID("525074dc-8985-46e2-8057-a307dc18a502"),
        instance=UUID("c4c1b6cd-4ae1-4b1c-8a4f-0c5a61e0e8b2"),
    )
    CHECK_PERIOD: ClassVar[float] = 1.0

    def __init__(
        self,
        ram: Iterable[tuple[int, int]],
        discard: Discard,
        *,
        clock: Callable[[], float] = time.monotonic,
        keep_target: bool = True,
        tuning: Tuning | None = None,
        window: Window | None = None,
        granule: int = PAGE_SIZE,
    ) -> None:
        boot = sorted(PageRange(gpa >> PAGE_SHIFT, size >> PAGE_SHIFT) for gpa, size in ram)
        ledger = Ledger(boot, discard, window, granule >> PAGE_SHIFT)
        self.machine = BalloonMachine(ledger, clock=clock, tuning=tuning)
        self.keep_target = keep_target
        self.on_change: list[Callable[[int], object]] = []
        self.on_finish: list[Callable[[ResizeOutcome], object]] = []
        self.on_status: list[Callable[[int, int], object]] = []
        self._channel: Channel | None = None
        self._waiting_for_room = False
        ledger.turns.progress = self._on_discarded

    # The channel's side

    def opened(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting_for_room = False
        self.machine.ledger.turns.later = channel.later
        self.machine.opened(message_limit=channel.max_payload)
        channel.every(self.CHECK_PERIOD, self._check)

    def received(self, payload: bytes) -> None:
        message = parse_guest_message(payload)
        try:
            self.machine.receive(message)
        finally:
            self._pump()

    def closed(self, channel: Channel) -> None:
        self._channel = None
        self.machine.closed()
        self._call_listeners()

    def reset(self) -> None:
        """Reset to the boot size and an empty ledger. With `keep_target` the next driver gets the last target."""
        self.machine.power_on(keep_target=self.keep_target)
        self._call_listeners()

    def bus_connected(self) -> None:
        """Handle a possible new kernel without a machine reset (kexec, crash kernel), which uses all boot RAM.

        Giving back the pages of its predecessor would free pages that it uses, so the ledger is emptied. The same
        kernel with hv_vmbus reloaded cannot be distinguished; it has lost those pages until it reboots. A driver that
        was only unbound and bound again makes no contact: its pages stay out, and can be given back to it.
        """
        self.machine.forget_pages("the guest made contact anew")
        self._call_listeners()

    def _on_discarded(self) -> None:
        self.machine.discarded()
        self._pump()

    def _check(self) -> None:
        self.machine.check_time()
        self._pump()

    def _pump(self) -> None:
        """Send the state machine's messages while there is room, then call the listeners."""
        channel = self._channel
        while channel is not None and (size := self.machine.next_size):
            if channel.room() < size:
                if not self._waiting_for_room:
                    self._waiting_for_room = True
                    channel.when_room(size, self._on_room)
                break
            channel.send(self.machine.next_message())
        self._call_listeners()

    def _on_room(self) -> None:
        self._waiting_for_room = False
        self._pump()

    def _call_listeners(self) -> None:
        notifications = self.machine.notifications
        while notifications:
            match notifications.popleft():
                case Changed(actual):
                    for changed in self.on_change:
                        changed(actual)
                case ResizeOutcome() as outcome:
                    for finished in self.on_finish:
                        finished(outcome)
                case StatusReport() as report:
                    for status in self.on_status:
                        status(report.available_pages * PAGE_SIZE, report.committed_pages * PAGE_SIZE)

    # The monitor's side

    def set_target(self, size: int, *, retry_in_background: bool = True) -> ResizePlan:
        """Resize the guest to `size` bytes, starting now or as soon as its driver is bound.

        The returned plan is the forecast; `on_finish` reports the outcome. With `retry_in_background` a guest that
        stopped above `size` gets a few more requests after that report.
        Raises ConfigError for a size below a page.
        """
        plan = self.machine.set_target(size, retry_in_background=retry_in_background)
        self._pump()
        return plan

    def stop_retrying(self) -> None:
        """Stop background retries of a resize whose result was reported: another resize policy takes over."""
        self.machine.stop_retrying()

    @property
    def actual(self) -> int:
        """Return the size for query-balloon: RAM without the pages that are out and discarded."""
        return self.machine.ledger.actual_pages * PAGE_SIZE

    @property
    def target(self) -> int | None:
        """Return the last target set."""
        return None if self.machine.target is None else self.machine.target * PAGE_SIZE

    @property
    def state_name(self) -> str:
        return self.machine.state.NAME

    @property
    def ready(self) -> bool:
        """Whether a driver has finished negotiating."""
        return self.machine.caps is not None

    @property
    def last_status(self) -> StatusReport | None:
        """Return the driver's last report, in pages; None when the channel is closed or none came yet."""
        return self.machine.status

    @property
    def last_outcome(self) -> ResizeOutcome | None:
        """Return the outcome of the last finished attempt."""
        return self.machine.outcome

    def info(self) -> BalloonState:
        """Return the device's full state, for `info balloon` and bug reports. Sizes in bytes."""
        machine, ledger = self.machine, self.machine.ledger
        status, caps, outcome = machine.status, machine.caps, machine.outcome
        return {
            "state": self.state_name,
            "version": str(machine.version) if machine.version is not None else None,
            "capabilities": None
            if caps is None
            else {
                "balloon": bool(caps.balloon),
                "hot-add": bool(caps.hot_add),
                "alignment": 1 << 20 + caps.alignment_log2_mib,
            },
            "boot": ledger.boot_pages * PAGE_SIZE,
            "max": ledger.maximum_pages * PAGE_SIZE,
            "hot-add": None if ledger.hot_range is None else self._hot_add_info(),
            "actual": self.actual,
            "target": self.target,
            "removed-guest": ledger.removed_guest_pages * PAGE_SIZE,
            "removed-both": ledger.removed_both_pages * PAGE_SIZE,
            "available": None if status is None else status.available_pages * PAGE_SIZE,
            "committed": None if status is None else status.committed_pages * PAGE_SIZE,
            "last-result": None if outcome is None else outcome.reason or "reached",
            "refused-pages": {
                "outside": ledger.counters.outside,
                "known": ledger.counters.known,
                "repeated": ledger.counters.repeated,
            },
        }

    def _hot_add_info(self) -> HotAddInfo:
        """Return the hot-add range's state. Sizes in bytes; `offline` is an estimate, as guests do not report it."""
        hot_range, growth = self.machine.ledger.hot_range, self.machine.growth
        assert hot_range is not None
        return {
            "address": hot_range.window.start * PAGE_SIZE,
            "size": hot_range.window.pages * PAGE_SIZE,
            "added": hot_range.ram.pages * PAGE_SIZE,
            "in-doubt": hot_range.unconfirmed.pages * PAGE_SIZE,
            "lost": hot_range.lost_pages * PAGE_SIZE,
            "offline": growth.offline_pages * PAGE_SIZE,
            "removed": self.machine.ledger.added.removed_pages * PAGE_SIZE,
            "refused": growth.refusal_reason() if self.ready else None,
        }
