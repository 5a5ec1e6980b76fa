"""What a resize will come to, told beforehand: the answer to "balloon 256M" before the guest has moved a page.

Source: Linux drivers/hv/hv_balloon.c, compute_balloon_floor(), for how much it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGES_PER_MIB = 256
_FLOOR = ((128, 8, 2), (512, 40, 4), (2048, 104, 8), (8192, 232, 16))
"""(below this many MiB of RAM, keep so many MiB, and RAM divided by this)."""
_FLOOR_ABOVE = (488, 32)


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """`will_reach`: bytes the guest is expected to end with. `reason`: why not the target, or what is waited for;
    empty if there is nothing to say."""

    target: int
    will_reach: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResizeOutcome:
    """How an attempt ended. `reason` is empty when the target was reached. Bytes."""

    target: int
    actual: int
    reason: str = ""

    @property
    def reached(self) -> bool:
        return not self.reason


def linux_floor(ram_pages: int) -> int:
    """Pages that Linux keeps available, whatever it is asked, with so much RAM at that moment."""
    mib = ram_pages // PAGES_PER_MIB
    for below, keep, divisor in _FLOOR:
        if mib < below:
            return (keep + mib // divisor) * PAGES_PER_MIB
    keep, divisor = _FLOOR_ABOVE
    return (keep + mib // divisor) * PAGES_PER_MIB


def lowest_reachable(current_pages: int, available_pages: int) -> int:
    """The fewest pages that a Linux guest with so many available will shrink to: an estimate, it goes on running."""
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
