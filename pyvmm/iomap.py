"""The I/O map: routes port and MMIO addresses to devices.

A vCPU thread decodes its exit and accesses the device through this map. The device's lock is held during the access,
because two vCPUs may reach the same device at once and the loop may work on it too. An unclaimed address reads as all
ones, and so does a device that fails (`pyvmm.contain`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pyvmm.contain import contain
from pyvmm.trace import event

unclaimed = event("iomap.unclaimed", "{space} {kind} at {address:#x}, {size} bytes")

SMALL = 256
"""Size up to which a range is entered in the table address by address; larger ranges are searched."""


OnUnclaimed = Callable[[str, int, int, int | None], None]
"""on_unclaimed(kind, address, size, value), on the vCPU's thread. `kind` is "port read", "mmio write" and so on;
`value` is None for a read.
"""


class IoDevice(Protocol):
    """A device with ports or MMIO. `offset` counts from the start of its range; sizes are 1, 2, 4 or 8."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


@dataclass(slots=True)
class _Claim:
    start: int
    size: int
    device: IoDevice
    lock: threading.RLock = field(default_factory=threading.RLock)


class IoMap:
    """One address space: `IoMap("port")` or `IoMap("mmio")`."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.on_unclaimed: OnUnclaimed = lambda kind, address, size, value: None
        self._claims: list[_Claim] = []
        self._by_address: dict[int, _Claim] = {}  # small claims only; nearly all are small

    def claim(self, start: int, size: int, device: IoDevice, lock: threading.RLock | None = None) -> None:
        """Route [start, start + size) to `device`. A device with several ranges passes their shared lock."""
        for other in self._claims:
            assert start + size <= other.start or other.start + other.size <= start, f"{start:#x} claimed twice"
        claim = _Claim(start, size, device, lock or threading.RLock())
        self._claims.append(claim)
        if size <= SMALL:
            self._by_address.update(dict.fromkeys(range(start, start + size), claim))

    def _find(self, address: int) -> _Claim | None:
        claim = self._by_address.get(address)
        if claim is None:
            claim = next((c for c in self._claims if c.start <= address < c.start + c.size), None)
        return claim

    def _missed(self, kind: str, address: int, size: int, value: int | None) -> None:
        if unclaimed.on:
            unclaimed(self.space, kind, address, size)
        self.on_unclaimed(f"{self.space} {kind}", address, size, value)

    def read(self, address: int, size: int) -> int:
        """Return the device's answer, truncated to `size` bytes."""
        claim = self._find(address)
        ones = (1 << 8 * size) - 1
        if claim is None:
            self._missed("read", address, size, None)
            return ones
        try:
            with claim.lock:
                return claim.device.read(address - claim.start, size) & ones
        except Exception as error:
            contain(f"{self.space} {claim.start:#x} read", error)
            return ones

    def write(self, address: int, size: int, value: int) -> None:
        """Pass a write to the device; a write to an unclaimed address is dropped."""
        claim = self._find(address)
        if claim is None:
            self._missed("write", address, size, value)
            return
        try:
            with claim.lock:
                claim.device.write(address - claim.start, size, value)
        except Exception as error:
            contain(f"{self.space} {claim.start:#x} write", error)
