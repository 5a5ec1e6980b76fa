"""Watchpoints where debug registers do not work: their pages are read-only for the guest, or missing.

    watch           read-only page   guest: mov %eax, watched --> MmioWrite exit --> stored here -->|  the debugger
    rwatch, awatch  no page at all   guest: mov watched, %eax --> MmioRead exit  --> read here   -->|  stops

Each write to such a page, or each access to it, is an exit, so a busy page slows the guest. What pyvmm and KVM access
themselves is not seen. KVM must be able to emulate the instruction, as for a device's memory; a missing page must
hold no code, page tables or stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm import address_map
from pyvmm.gdb.target import Kind, RefusedError, StopReason
from pyvmm.machine.hardware import Hardware
from pyvmm.memory import PAGE_SIZE, GuestMemory

PAGE_LIMIT: Final = address_map.WATCH_SLOTS.size // 2
"""Most pages: each takes a memory slot, and the RAM behind it another."""


_REASON: Final[dict[Kind, StopReason]] = {Kind.WRITE: "watch", Kind.READ: "rwatch", Kind.ACCESS: "awatch"}


@dataclass(frozen=True, slots=True)
class _Watch:
    kind: Kind
    address: int  # virtual
    length: int
    gpa: int

    @property
    def page(self) -> int:
        return self.gpa // PAGE_SIZE * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Hit:
    """A watchpoint that an access touches."""

    reason: StopReason
    address: int


class WatchedPages:
    """The watched bytes of one machine. `written` and `read` are called on vCPU threads, the rest while the vCPUs are
    held.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._watches: list[_Watch] = []
        self._applied: dict[int, bool] = {}  # by page: whether it is missing

    def insert(self, kind: Kind, address: int, length: int, gpa: int) -> None:
        """Watch bytes of one page, from the next `apply` on. Raises RefusedError."""
        watch = _Watch(kind, address, length, gpa)
        pages = {each.page for each in (*self._watches, watch)}
        if len(pages) > PAGE_LIMIT:
            raise RefusedError(f"watchpoints on more than {PAGE_LIMIT} pages")
        if watch not in self._watches:
            self._watches.append(watch)

    def remove(self, kind: Kind, address: int, length: int) -> None:
        """Stop watching, from the next `apply` on."""
        gone = (kind, address, length)
        self._watches = [each for each in self._watches if (each.kind, each.address, each.length) != gone]

    def clear(self) -> None:
        """Stop watching anything, from the next `apply` on."""
        self._watches.clear()

    def forget(self) -> None:
        """Note that the hardware is new: all pages are there."""
        self._applied = {}

    def apply(self, hardware: Hardware | None) -> None:
        """Take just the watched pages away, or the right to write them. Changing KVM's memory slots is slow, so this
        waits for the guest's next run. Raises HostError.
        """
        wanted: dict[int, bool] = {}
        for each in self._watches:
            wanted[each.page] = wanted.get(each.page, False) or each.kind is not Kind.WRITE
        if hardware is not None and wanted != self._applied:
            hardware.protect(wanted)
            self._applied = wanted

    def written(self, gpa: int, data: bytes) -> tuple[bool, Hit | None]:
        """Store what the guest wrote, if it is on such a page. Return whether it is, and what it touches."""
        if gpa // PAGE_SIZE * PAGE_SIZE not in self._applied:
            return False, None
        self._memory.write(gpa, data)
        return True, self._hit(gpa, len(data), Kind.READ)

    def read(self, gpa: int, length: int) -> tuple[bytes | None, Hit | None]:
        """Return what the guest reads, None if it is on no missing page, and what it touches."""
        if not self._applied.get(gpa // PAGE_SIZE * PAGE_SIZE, False):
            return None, None
        return self._memory.read(gpa, length), self._hit(gpa, length, Kind.WRITE)

    def _hit(self, gpa: int, length: int, other: Kind) -> Hit | None:
        """Return the watchpoint that an access touches, of any kind but `other`."""
        for each in self._watches:
            if each.kind is not other and each.gpa < gpa + length and gpa < each.gpa + each.length:
                return Hit(_REASON[each.kind], each.address)
        return None
