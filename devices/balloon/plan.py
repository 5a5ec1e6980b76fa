"""The forecast of a resize: the size that the guest will reach, computed before it has moved a page.

Source: Linux drivers/hv/hv_balloon.c, compute_balloon_floor(), for how much it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.devices.balloon.ledger import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.devices.balloon.growth import Growth
    from pyvmm.devices.balloon.protocol import Capabilities

PAGES_PER_MIB = 256
_FLOOR = ((128, 8, 2), (512, 40, 4), (2048, 104, 8), (8192, 232, 16))
"""Rows of (RAM limit in MiB, constant part of the floor in MiB, divisor of RAM for its variable part)."""
_FLOOR_ABOVE = (488, 32)


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """The forecast of a resize. `will_reach`: the guest's expected size in bytes. `reason`: why that is not the
    target, or what delays it; else empty."""

    target: int
    will_reach: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResizeOutcome:
    """The outcome of an attempt, in bytes. `reason` is empty when the target was reached.

    Not `final`: the guest stopped short; retries follow in the background, and then one more outcome.
    """

    target: int
    actual: int
    reason: str = ""
    final: bool = True

    @property
    def reached(self) -> bool:
        return not self.reason


def linux_floor(ram_pages: int) -> int:
    """Return the pages that Linux keeps available under any request, given its current amount of RAM."""
    mib = ram_pages // PAGES_PER_MIB
    for below, keep, divisor in _FLOOR:
        if mib < below:
            return (keep + mib // divisor) * PAGES_PER_MIB
    keep, divisor = _FLOOR_ABOVE
    return (keep + mib // divisor) * PAGES_PER_MIB


def lowest_reachable(current_pages: int, available_pages: int) -> int:
    """Return the size in pages to which such a Linux guest can shrink: an estimate, as it goes on running."""
    low, high = max(0, current_pages - available_pages), current_pages
    if available_pages <= linux_floor(current_pages):
        return current_pages
    while low < high:
        middle = (low + high) // 2
        if available_pages - (current_pages - middle) >= linux_floor(middle):
            high = middle
        else:
            low = middle + 1
    return low


ROUNDED = "a guest's memory comes in pages of 4 KiB"
NO_DRIVER = "the guest's balloon driver is not loaded yet; the target is kept until it is"
UNCONFIRMED = (
    "the guest may still have memory that was added for an earlier driver or kernel, and that counts; "
    "a machine reset takes it away"
)
CANNOT_BALLOON = "the guest's driver cannot balloon"


def forecast(size: int, growth: Growth, caps: Capabilities | None, available_pages: int | None) -> ResizePlan:
    """Forecast the result of a target of `size` bytes. `available_pages`: of the guest's last status report."""
    ledger = growth.ledger
    target = reachable = size // PAGE_SIZE
    reasons = [ROUNDED] if size % PAGE_SIZE else []
    if target > ledger.ram_pages:
        wanted = max(target - ledger.unconfirmed_pages, ledger.ram_pages)
        reachable = min(wanted, growth.reachable_pages())
        if growth.whole_blocks:
            more = (reachable - ledger.ram_pages) // growth.alignment * growth.alignment
            reachable = ledger.ram_pages + more
        if reachable < target:
            blocks = growth.whole_blocks and target < growth.reachable_pages()
            reasons.append(
                growth.refusal_reason()
                or (f"{UNCONFIRMED} ({ledger.unconfirmed_pages >> 8} MiB)" if reachable == wanted else "")
                or (f"the guest takes memory in blocks of {growth.alignment >> 8} MiB" if blocks else "")
                or f"{reachable >> 8} MiB are the most this guest can have"
            )
        if growth.offline_pages:
            reasons.append(f"the guest left {growth.offline_pages >> 8} MiB of hot-added memory offline")
    elif caps is not None and not caps.balloon and target < ledger.current_pages:
        reachable = ledger.current_pages
        reasons.append(CANNOT_BALLOON)
    elif target < ledger.current_pages and available_pages is not None:
        lowest = lowest_reachable(ledger.current_pages, available_pages)
        if target < lowest:
            reachable = lowest
            reasons.append(f"the guest keeps a floor of memory: it is expected to stop near {lowest >> 8} MiB")
    if caps is None:
        reasons.append(NO_DRIVER)
    return ResizePlan(size, reachable * PAGE_SIZE, "; ".join(reasons))
