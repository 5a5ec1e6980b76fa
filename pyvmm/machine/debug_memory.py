"""Guest memory and breakpoints for a debugger: by virtual address, and without the breakpoints' own bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm import address_map
from pyvmm.errors import GuestMemoryError
from pyvmm.gdb import events as trace
from pyvmm.gdb.breakpoints import OUT, SCAN, DebugRegisters, Patches, is_short, leads_to
from pyvmm.gdb.page_tables import PAGE, Paging
from pyvmm.gdb.target import Kind, RefusedError
from pyvmm.machine.debug_pages import WatchedPages
from pyvmm.memory import GuestMemory

KERNEL_HALF: Final = 1 << 63
"""The first address of Linux's half of the address space."""

KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where Linux maps physical address 0 for its text and data (__START_KERNEL_map). On a vCPU that has not entered the
kernel's page tables yet, a debugger finds the kernel there all the same: `break start_kernel` before it runs.
"""


class DebugMemory:
    """The memory and the breakpoints of a machine whose vCPUs are held. `paging(vcpu)` returns a vCPU's translation.

    Raises RefusedError for what cannot be done.
    """

    def __init__(self, memory: GuestMemory, paging: Callable[[int], Paging]) -> None:
        self._memory = memory
        self._get_paging = paging
        self._paging: dict[int, Paging] = {}
        self.patches = Patches(memory, OUT)
        self.registers = DebugRegisters()
        self.pages = WatchedPages(memory)
        self._boot_ram = list(memory)

    def changed(self) -> None:
        """Forget the vCPUs' translations: their registers or the page tables may have changed."""
        self._paging.clear()

    def forget(self) -> None:
        """Forget the patches: the memory was cleared."""
        self.patches.forget()
        self.pages.forget()
        self.changed()

    def clear(self) -> None:
        """Remove all break- and watchpoints."""
        self.patches.clear()
        self.registers.clear()
        self.pages.clear()

    def read(self, vcpu: int, address: int, length: int) -> bytes:
        """Return what is mapped of `length` bytes at `address`, from its start on."""
        data = b""
        while len(data) < length:
            at = address + len(data)
            gpa = self._translate(vcpu, at)
            size = min(length - len(data), PAGE - at % PAGE)
            if gpa is None:
                break
            try:
                data += self.patches.hide(gpa, self._memory.read(gpa, size))
            except GuestMemoryError:
                break
        return data

    def write(self, vcpu: int, address: int, data: bytes) -> None:
        """Store `data` at `address`."""
        while data:
            gpa = self._translate(vcpu, address)
            size = min(len(data), PAGE - address % PAGE)
            if gpa is None or not self._memory.contains(gpa, size):
                raise RefusedError(f"{address:#x} is not mapped to RAM")
            self.patches.write(gpa, data[:size])
            address, data = address + size, data[size:]
        self.changed()

    def insert(self, vcpu: int, kind: Kind, address: int, length: int) -> None:
        """Insert a break- or watchpoint; `vcpu`'s page tables translate."""
        how = "a debug register"
        if kind is Kind.SOFTWARE or (kind is Kind.HARDWARE and not self.registers.works(kind)):
            if address in self.patches:
                return
            how = self._insert_software(vcpu, address, length)
        elif kind is not Kind.HARDWARE and not self.registers.works(kind):
            self._watch(vcpu, kind, address, length)
            how = "a read-only page" if kind is Kind.WRITE else "a missing page"
        else:
            self.registers.insert(kind, address, length)
        if trace.breakpoint.on:
            trace.breakpoint(kind.name.lower(), address, how)

    def _insert_software(self, vcpu: int, address: int, length: int) -> str:
        """Patch memory, or take a debug register where that cannot be; return which."""
        places = [self._translate(vcpu, address + n) for n in range(len(self.patches.code))]
        try:
            mapped = [each for each in places if each is not None and self._memory.contains(each, 1)]
            if len(mapped) < len(places):
                raise RefusedError("not mapped to RAM")
            if self.patches.code == OUT:
                self._check_out(vcpu, address)
            self.patches.insert(address, mapped)
        except RefusedError as error:
            self.registers.insert(Kind.SOFTWARE, address, length)
            return f"a debug register: {error}"
        return f"{self.patches.code.hex(' ')} in memory"

    def _watch(self, vcpu: int, kind: Kind, address: int, length: int) -> None:
        gpa = self._translate(vcpu, address)
        page = None if gpa is None else gpa // PAGE * PAGE
        if gpa is None or page is None or not 0 < length <= page + PAGE - gpa:
            raise RefusedError(f"{length} bytes at {address:#x} are not in one page of memory")
        if not any(each.gpa <= page < each.end for each in self._boot_ram):
            raise RefusedError(f"{address:#x} is not in boot RAM")
        self.pages.insert(kind, address, length, gpa)

    def _check_out(self, vcpu: int, address: int) -> None:
        """Raise RefusedError if OUT cannot replace the instruction at `address`, or what follows one of one byte."""
        if address < KERNEL_HALF and self._paging[vcpu].long_mode:
            raise RefusedError("OUT faults in user mode")
        code = self.read(vcpu, address - SCAN, 2 * SCAN)
        if len(code) < 2 * SCAN:
            code = self.read(vcpu, address, SCAN)
        at = 0 if len(code) <= SCAN else SCAN
        if is_short(code[at : at + 2]) and leads_to(code, at + 1):
            raise RefusedError("an instruction of one byte, and the one behind it is jumped to")

    def remove(self, kind: Kind, address: int, length: int) -> None:
        """Remove a break- or watchpoint, if it is there."""
        if kind not in (Kind.SOFTWARE, Kind.HARDWARE):
            self.pages.remove(kind, address, length)
        if kind not in (Kind.SOFTWARE, Kind.HARDWARE) or not self.patches.remove(address):
            self.registers.remove(kind, address, length)

    def _translate(self, vcpu: int, address: int) -> int | None:
        if vcpu not in self._paging:
            self._paging[vcpu] = self._get_paging(vcpu)
        paging, address = self._paging[vcpu], address & (1 << 64) - 1
        if paging.before_kernel(address_map.PAGE_TABLES.start) and address >= KERNEL_MAP:
            gpa = address - KERNEL_MAP
            return gpa if self._memory.contains(gpa, 1) else None
        return paging.translate(self._memory, address)
