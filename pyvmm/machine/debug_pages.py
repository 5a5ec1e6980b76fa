"""Write watchpoints where debug registers do not work: their pages are read-only for the guest.

    guest: mov %eax, watched --> MmioWrite exit --> stored here --> the debugger stops if it touches a watched byte

Each write to such a page is an exit, so a busy page slows the guest. What pyvmm and KVM write themselves is not seen.
KVM must be able to emulate the instruction, as for a device's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm import address_map
from pyvmm.gdb.target import RefusedError
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import PAGE_SIZE, GuestMemory

PAGE_LIMIT: Final = address_map.WATCH_SLOTS.size // 2
"""Most pages: each takes a memory slot, and the RAM behind it another."""


@dataclass(frozen=True, slots=True)
class _Watch:
    address: int  # virtual
    length: int
    gpa: int

    @property
    def page(self) -> int:
        return self.gpa // PAGE_SIZE * PAGE_SIZE


class WatchedPages:
    """The watched bytes of one machine. `written` is called on vCPU threads, the rest while the vCPUs are held."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._watches: list[_Watch] = []
        self._applied: frozenset[int] = frozenset()

    def insert(self, address: int, length: int, gpa: int) -> None:
        """Watch bytes of one page, from the next `apply` on. Raises RefusedError."""
        watch = _Watch(address, length, gpa)
        pages = {each.page for each in (*self._watches, watch)}
        if len(pages) > PAGE_LIMIT:
            raise RefusedError(f"watchpoints on more than {PAGE_LIMIT} pages")
        if watch not in self._watches:
            self._watches.append(watch)

    def remove(self, address: int, length: int) -> None:
        """Stop watching, from the next `apply` on."""
        self._watches = [each for each in self._watches if (each.address, each.length) != (address, length)]

    def clear(self) -> None:
        """Stop watching anything, from the next `apply` on."""
        self._watches.clear()

    def forget(self) -> None:
        """Note that the hardware is new: no page is read-only."""
        self._applied = frozenset()

    def apply(self, hardware: Hardware | None) -> None:
        """Make just the watched pages read-only. Changing KVM's memory slots is slow, so this waits for the guest's
        next run. Raises HostError.
        """
        wanted = frozenset(each.page for each in self._watches)
        if hardware is not None and wanted != self._applied:
            hardware.protect(sorted(wanted))
            self._applied = wanted

    def written(self, gpa: int, data: bytes) -> tuple[bool, int | None]:
        """Store what the guest wrote, if it is on such a page. Return whether it is, and the address of a watchpoint
        that it touches.
        """
        if gpa // PAGE_SIZE * PAGE_SIZE not in self._applied:
            return False, None
        self._memory.write(gpa, data)
        for each in self._watches:
            if each.gpa < gpa + len(data) and gpa < each.gpa + each.length:
                return True, each.address
        return True, None
