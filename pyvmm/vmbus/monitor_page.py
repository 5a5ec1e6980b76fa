"""The monitor page: signals of the guest as bits in memory that the host looks at now and then, without an exit.

Source: Linux include/asm-generic/hyperv-tlfs.h, union hv_monitor_trigger_group and struct hv_monitor_page;
drivers/hv/channel.c, vmbus_setevent().

    +0   trigger state u32, u32
    +8   group 0: pending u32, armed u32     channels with the monitor ids 0 to 31
    +16  group 1 ...                         four groups

An offer gives a channel its monitor id. The guest's contact names two pages; it sets bits in the second, with a
locked instruction, and the host clears them. Hyper-V looks every 100 us or so; in Python that would cost a core, and
a hypercall is faster than a longer period. So it is for drivers that demand it: uio_hv_generic before Linux 6.10.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.errors import GuestMemoryError
from pyvmm.loop import Timer
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.timers import Scheduler

PERIOD = 0.001
"""Seconds between two looks, while a channel with a monitor id is open."""
ID_LIMIT = 128
"""Number of monitor ids."""
_GROUP_SIZE, _GROUPS_OFFSET, _IDS_PER_GROUP = 8, 8, 32


class MonitorPage:
    """Looks at the guest's monitor page and calls those whose bits are set. On the loop's thread."""

    def __init__(self, loop: Scheduler, memory: GuestMemory, gpa: Callable[[], int]) -> None:
        """`gpa()`: the page's address; 0 if the guest has none."""
        self._loop = loop
        self._memory = memory
        self._gpa = gpa
        self._watched: dict[int, Callable[[], object]] = {}  # by monitor id
        self._timer: Timer | None = None

    def watch(self, id: int, signalled: Callable[[], object]) -> None:
        """Call `signalled()` after each time that the guest sets the id's bit."""
        self._watched[id] = signalled
        if self._timer is None:
            self._timer = self._loop.every(PERIOD, self._look)

    def forget(self, id: int) -> None:
        """End a `watch`; harmless if there is none."""
        self._watched.pop(id, None)
        if self._timer is not None and not self._watched:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        page = self._gpa()
        for group in {id // _IDS_PER_GROUP for id in self._watched} if page else ():
            try:
                bits = self._take(page + _GROUPS_OFFSET + group * _GROUP_SIZE)
            except GuestMemoryError:
                return
            while bits:
                low = bits & -bits
                bits ^= low
                signalled = self._watched.get(group * _IDS_PER_GROUP + low.bit_length() - 1)
                if signalled is not None:
                    signalled()

    def _take(self, gpa: int) -> int:
        """Clear the u32 and return what it held."""
        bits = int.from_bytes(self._memory.read(gpa, 4), "little")
        while bits:
            found = self._memory.compare_exchange(gpa, bits, 0)
            if found == bits:
                break
            bits = found  # the guest has set another bit meanwhile
        return bits
