"""Free page reporting: discards pages that the guest reports as free at once, without the balloon.

Called on vCPU threads (pyvmm/hyperv/extended.py explains why), while the loop may unmap memory.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.errors import HostError
from pyvmm.memory import PAGE_SIZE, GuestMemory
from pyvmm.tap import Item, Tap


def tap_discard(tap: Tap, by: str, gpa: int, size: int, discard: Callable[[int, int], int]) -> int:
    """Pass a discard through the tap; return the bytes discarded. `by` is what released it. Raises HostError."""

    def deliver(item: Item) -> int:
        place, length = int(item.fields["gpa"]), int(item.fields["size"])
        if not (0 <= place < 1 << 64 and 0 <= length < 1 << 64):
            raise HostError(f"no {length:#x} bytes at {place:#x}")
        return discard(place & -PAGE_SIZE, length & -PAGE_SIZE)

    try:
        done = tap.cross("out", b"", {"by": by, "gpa": gpa, "size": size}, deliver)
    except OSError as error:
        raise HostError(f"discard of {size >> 10} KiB: {error.strerror}") from None
    return 0 if done is None else int(done)


class FreePages:
    """Discards reported pages of `memory`, through the tap `discard`."""

    def __init__(self, memory: GuestMemory, tap: Tap | None = None) -> None:
        self._memory = memory
        self._tap = Tap("discard") if tap is None else tap

    def discard(self, gpa: int, size: int) -> int:
        """Discard the RAM within [gpa, gpa + size); return the bytes discarded. Raises HostError."""
        if self._tap.on:
            return tap_discard(self._tap, "reporting", gpa, size, self._discard)
        return self._discard(gpa, size)

    def _discard(self, gpa: int, size: int) -> int:
        done = 0
        for region, offset, length in self._memory.pieces(gpa, size):
            try:
                held = region.view[offset : offset + length]
            except ValueError:  # released: the region is being removed
                continue
            # As long as a view is held the memory stays mapped (HostMemory.close): its addresses cannot be reused by
            # another mapping between the look-up and the discard.
            with held:
                region.memory.discard(region.offset + offset, length)
            done += length
        return done
