"""Break- and watchpoints: the CPU's four debug registers, and instructions patched into guest memory.

A software breakpoint is a patch over the first bytes of an instruction:

    CC       INT3. One byte; KVM must intercept the exception (KVM_GUESTDBG_USE_SW_BP), which QEMU's TCG never lets it
    E6 7E    OUT 0x7E, AL. An exit everywhere, but two bytes: over an instruction of one byte it damages the next,
             which matters only where that is jumped to

For 0x7E alone KVM advances RIP before the exit and does nothing at re-entry (KVM_X86_QUIRK_OUT_7E_INC_RIP), so RIP
can be set back to the breakpoint. Where a patch does not fit, or the address is not mapped yet, a software breakpoint
takes a debug register.

Source: Intel SDM volume 3, section 18.2 (debug registers); Linux arch/x86/kvm/x86.c, kvm_fast_pio_out().
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pyvmm import address_map
from pyvmm.gdb.target import Kind, RefusedError, StopReason

INT3: Final = b"\xcc"
OUT: Final = bytes([0xE6, address_map.BREAKPOINT.start])

SLOTS: Final = 4
WATCH_LIMIT: Final = 8 * SLOTS  # bytes
PATCH_LIMIT: Final = 1024
"""Most software breakpoints at once."""

_ENABLED: Final = 1 << 10  # reads as one
_CONDITION: Final = {Kind.SOFTWARE: 0, Kind.HARDWARE: 0, Kind.WRITE: 1, Kind.READ: 3, Kind.ACCESS: 3}
_LENGTH: Final = {1: 0, 2: 1, 4: 3, 8: 2}
_REASON: Final[dict[Kind, StopReason]] = {
    Kind.SOFTWARE: "swbreak",
    Kind.HARDWARE: "hwbreak",
    Kind.WRITE: "watch",
    Kind.READ: "rwatch",
    Kind.ACCESS: "awatch",
}

_ONE_BYTE: Final = frozenset(
    (*range(0x50, 0x60), *range(0x90, 0x9A), *range(0xA4, 0xA8), *range(0xAA, 0xB0), *range(0xF8, 0xFE))
) | frozenset(b"\x6c\x6d\x6e\x6f\x9b\x9c\x9d\x9e\x9f\xc3\xc9\xcb\xcc\xcf\xd7\xec\xed\xee\xef\xf1\xf4\xf5")
"""First bytes of instructions that have no second one, in 64-bit mode."""
_ENDS: Final = frozenset(b"\xc3\xcb\xcc\xcf\xf4")
"""Those after which another function may begin."""
_SHORT_BRANCHES: Final = frozenset((*range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xEB))

SCAN: Final = 4096
"""Bytes before and after a breakpoint that are searched for branches behind it."""

_WORD: Final = 8  # bytes, of which the CPU stores those of one aligned word at once


@dataclass(frozen=True, slots=True)
class Watched:
    """What one debug register watches, and the request that it belongs to."""

    address: int
    length: int
    request: tuple[Kind, int, int]

    @property
    def reason(self) -> StopReason:
        """Return the protocol's word for a hit."""
        return _REASON[self.request[0]]

    @property
    def executes(self) -> bool:
        """Whether it is a breakpoint, which stops before the instruction and hits again when that is resumed."""
        return _CONDITION[self.request[0]] == 0


class DebugRegisters:
    """The allocation of DR0 to DR3, the same for all vCPUs."""

    def __init__(self, breakpoints: bool = True, watchpoints: bool = True) -> None:
        self.slots: list[Watched | None] = [None] * SLOTS
        self._works = {True: breakpoints, False: watchpoints}  # on this KVM, by whether it is for execution

    def insert(self, kind: Kind, address: int, length: int) -> None:
        """Take as many registers as it needs; no effect if it is there. Raises RefusedError if they are taken."""
        request = (kind, address, length)
        if any(each is not None and each.request == request for each in self.slots):
            return
        executes = _CONDITION[kind] == 0
        if not self.works(kind):
            raise RefusedError(f"{'break' if executes else 'watch'}points in debug registers do not work on this KVM")
        pieces = [(address, 1)] if executes else _pieces(address, length)
        free = [number for number, each in enumerate(self.slots) if each is None]
        if len(pieces) > len(free):
            raise RefusedError(f"it needs {len(pieces)} debug registers, and {len(free)} of 4 are free")
        for number, (start, size) in zip(free, pieces, strict=False):
            self.slots[number] = Watched(start, size, request)

    def works(self, kind: Kind) -> bool:
        """Return whether this KVM stops at a register of that kind."""
        return self._works[_CONDITION[kind] == 0]

    def clear(self) -> None:
        """Free all registers."""
        self.slots = [None] * SLOTS

    def remove(self, kind: Kind, address: int, length: int) -> bool:
        """Free the registers of a request; return whether there were any."""
        kept = [None if each is not None and each.request == (kind, address, length) else each for each in self.slots]
        changed, self.slots = kept != self.slots, kept
        return changed

    def values(self) -> tuple[int, ...]:
        """Return DR0 to DR7 for KVM_SET_GUEST_DEBUG; all zero if nothing is watched."""
        control = 0
        for number, each in enumerate(self.slots):
            if each is not None:
                kind = _CONDITION[each.request[0]] | _LENGTH[each.length] << 2
                control |= 2 << 2 * number | kind << 16 + 4 * number
        addresses = [0 if each is None else each.address for each in self.slots]
        return (*addresses, 0, 0, 0, control | _ENABLED if control else 0)

    def hit(self, dr6: int) -> Watched | None:
        """Return the one that DR6 names, the first of several."""
        return next((each for n, each in enumerate(self.slots) if each is not None and dr6 >> n & 1), None)


def _pieces(address: int, length: int) -> list[tuple[int, int]]:
    """Split a range into aligned pieces of 1, 2, 4 or 8 bytes. Raises RefusedError."""
    if not 0 < length <= WATCH_LIMIT:
        raise RefusedError(f"a watchpoint of {length} bytes: 1 to {WATCH_LIMIT}")
    pieces = []
    while length:
        size = next(size for size in (8, 4, 2, 1) if size <= length and address % size == 0)
        pieces.append((address, size))
        address, length = address + size, length - size
    return pieces


def is_short(code: bytes) -> bool:
    """Return whether `code` begins with an instruction of one byte, and more than padding follows it."""
    return bool(code) and code[0] in _ONE_BYTE and code[1:2] not in (b"\xcc", b"\x90")


def leads_to(code: bytes, target: int) -> bool:
    """Return whether the instruction at offset `target` of `code` may be reached otherwise than from the one before.

    It may be if bytes anywhere in `code` could be a branch to it, or if it may be a function's first.
    """
    if code[target - 1] in _ENDS:
        return True
    for at in range(max(0, target - 129), min(len(code) - 1, target + 127)):
        short = int.from_bytes(code[at + 1 : at + 2], "little", signed=True)
        if code[at] in _SHORT_BRANCHES and at + 2 + short == target:
            return True
    for shift in range(4):
        usable = (len(code) - shift) // 4 * 4
        words = memoryview(code)[shift : shift + usable].cast("i")
        for n, displacement in enumerate(words):
            if shift + 4 * n + 4 + displacement == target:
                return True
    return False


def _contiguous(places: Sequence[int]) -> bool:
    return bool(places) and all(second == first + 1 for first, second in itertools.pairwise(places))


class Memory(Protocol):
    """The part of GuestMemory that is used here."""

    def read(self, gpa: int, length: int, /) -> bytes: ...
    def write(self, gpa: int, data: bytes, /) -> None: ...


class Patches:
    """The software breakpoints in guest memory, `limit` at most. All methods but `in` only while no vCPU runs, or, to
    remove one whose bytes are in one aligned word (`is_atomic`), from the thread of the vCPU that hit it.
    """

    def __init__(self, memory: Memory, code: bytes, limit: int = PATCH_LIMIT) -> None:
        self.code = code
        self.limit = limit
        self._memory = memory
        self._places: dict[int, tuple[int, ...]] = {}  # virtual address -> gpa of each patched byte
        self._original: dict[int, int] = {}  # gpa -> byte

    def __contains__(self, address: int) -> bool:
        return address in self._places

    def __len__(self) -> int:
        return len(self._places)

    def insert(self, address: int, places: Sequence[int]) -> None:
        """Patch the instruction at `address`, whose bytes are at `places`. Raises RefusedError if it does not fit."""
        if len(self._places) >= self.limit:
            raise RefusedError(f"more than {self.limit} breakpoints")
        if any(gpa in self._original for gpa in places):
            raise RefusedError("another breakpoint is in the way")
        before = self._load(places)
        self._store(places, self.code)
        self._original |= dict(zip(places, before, strict=True))
        self._places[address] = tuple(places)

    def remove(self, address: int) -> bool:
        """Restore the instruction at `address`; return whether it was patched.

        If its memory has other contents by now (a kernel started by kexec), it is left alone.
        """
        places = self._places.pop(address, ())
        found = self._load(places)
        before = bytes(self._original.pop(gpa) for gpa in places)
        if found == self.code:
            self._store(places, before)
        return bool(places)

    def is_atomic(self, address: int) -> bool:
        """Return whether the bytes of a breakpoint are stored at once: another vCPU sees all of them or none."""
        places = self._places.get(address, ())
        return _contiguous(places) and len({gpa // _WORD for gpa in places}) == 1

    def original(self, address: int) -> bytes:
        """Return the bytes that the breakpoint at `address` replaced; b"" if there is none."""
        return bytes(self._original[gpa] for gpa in self._places.get(address, ()))

    def _within(self, gpa: int, length: int) -> list[int]:
        """Return the patched bytes in a range."""
        if length < len(self._original):
            return [at for at in range(gpa, gpa + length) if at in self._original]
        return [at for at in self._original if gpa <= at < gpa + length]

    def _load(self, places: Sequence[int]) -> bytes:
        if _contiguous(places):
            return self._memory.read(places[0], len(places))
        return b"".join(self._memory.read(gpa, 1) for gpa in places)

    def _store(self, places: Sequence[int], data: bytes) -> None:
        if _contiguous(places):
            self._memory.write(places[0], data)
        else:
            for gpa, byte in zip(places, data, strict=True):
                self._memory.write(gpa, bytes([byte]))

    def clear(self) -> None:
        """Restore all instructions."""
        for address in list(self._places):
            self.remove(address)

    def forget(self) -> None:
        """Forget all: the memory was cleared."""
        self._places.clear()
        self._original.clear()

    def hide(self, gpa: int, data: bytes) -> bytes:
        """Return `data`, read at `gpa`, with the bytes that were there before the patches."""
        inside = self._within(gpa, len(data))
        if not inside:
            return data
        shown = bytearray(data)
        for at in inside:
            shown[at - gpa] = self._original[at]
        return bytes(shown)

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` in guest memory, under the patches."""
        merged = bytearray(data)
        for at in self._within(gpa, len(data)):
            merged[at - gpa] = self._memory.read(at, 1)[0]
            self._original[at] = data[at - gpa]
        self._memory.write(gpa, bytes(merged))
