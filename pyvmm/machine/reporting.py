"""Free page reporting: discards pages that the guest reports as free at once, without the balloon.

Called on vCPU threads (pyvmm/hyperv/extended.py explains why), while the loop may unmap memory.
"""

from __future__ import annotations

from pyvmm.memory import GuestMemory


class FreePages:
    """Discards reported pages of `memory`."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def discard(self, gpa: int, size: int) -> int:
        """Discard the RAM within [gpa, gpa + size); return the bytes discarded. Raises HostError."""
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
