"""The guest's kernel code by virtual address, read and patched while no vCPU runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyvmm.gdb.breakpoints import OUT, Patches
from pyvmm.gdb.page_tables import PAGE, Paging
from pyvmm.gdb.target import RefusedError
from pyvmm.kvm import Vcpu
from pyvmm.memory import GuestMemory

_CPL: Final = 3


class GuestCode:
    """Code by the first vCPU's page tables, page by page: a page is read once."""

    def __init__(self, memory: GuestMemory, patches: Patches, vcpus: Sequence[Vcpu]) -> None:
        sregs = vcpus[0].sregs
        self._paging = Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, user=sregs.cs.selector & _CPL == _CPL)
        self._memory = memory
        self._patches = patches
        self._pages: dict[int, tuple[int, bytes] | None] = {}  # gpa and contents, without breakpoints
        self._next = {vcpu.regs.rip for vcpu in vcpus}

    def _page(self, address: int) -> tuple[int, bytes] | None:
        number = address // PAGE
        if number not in self._pages:
            gpa = self._paging.translate(self._memory, number * PAGE)
            mapped = gpa is not None and self._memory.contains(gpa, PAGE)
            found = (
                (gpa, self._patches.hide(gpa, self._memory.read(gpa, PAGE))) if gpa is not None and mapped else None
            )
            self._pages[number] = found
        return self._pages[number]

    def places(self, address: int, length: int) -> list[int]:
        """Return the guest physical addresses of `length` bytes; fewer where they are not mapped to RAM."""
        found: list[int] = []
        for at in range(address, address + length):
            page = self._page(at)
            if page is None:
                break
            found.append(page[0] + at % PAGE)
        return found

    def read(self, address: int, length: int) -> bytes:
        """Return code without breakpoints; less than `length` bytes where it is not mapped."""
        page = self._page(address)
        if page is None:
            return b""
        at = address % PAGE
        data = page[1][at : at + length]
        return data if len(data) == length else data + self.read(address + len(data), length - len(data))

    def patch(self, address: int) -> bool:
        """Patch the instruction at `address`; return whether a breakpoint is there now. Not if a vCPU would go on
        inside of it: at the instruction behind one of one byte.
        """
        if address in self._patches:
            return True
        places = self.places(address, len(OUT))
        if len(places) < len(OUT) or address + 1 in self._next:
            return False
        try:
            self._patches.insert(address, places)
        except RefusedError:
            return False
        return True
