"""Free page reporting: what the guest says it does not use goes back to the host at once, without any balloon.

Called on vCPU threads (pyvmm/hyperv/extended.py tells why it cannot wait), while the loop may take memory away.
"""

from __future__ import annotations

from pyvmm.memory import GuestMemory


class FreePages:
    """Discards what is reported of `memory`."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def discard(self, gpa: int, size: int) -> int:
        """Give what of [gpa, gpa + size) is RAM back to the host; the bytes given back. Raises HostError."""
        done = 0
        for region, offset, length in self._memory.pieces(gpa, size):
            try:
                held = region.view[offset : offset + length]
            except ValueError:  # released: the region is on its way out
                continue
            # As long as a view is held the memory stays mapped (HostMemory.close): its addresses cannot become
            # somebody else's between the look-up and the discard.
            with held:
                region.memory.discard(region.offset + offset, length)
            done += length
        return done
