"""QEMU's fw_cfg ports, with the few items that kvm-unit-tests reads: how many CPUs and how much RAM there is.

Source: QEMU docs/specs/fw_cfg.rst. A 16-bit write to the first port selects an item, each byte read from the second
is its next one. Items that do not exist, and bytes past an item's end, read as 0. No files, no DMA.
"""

from __future__ import annotations

import threading

from pyvmm.trace import event

selected = event("testdev.fw_cfg", "item {item:#x}")

SIGNATURE, ID, RAM_SIZE, CPU_COUNT, MAX_CPUS = 0x00, 0x01, 0x03, 0x05, 0x0F
_TRADITIONAL = 1  # interface without DMA


class FwCfg:
    """Both ports."""

    def __init__(self, cpus: int, ram_size: int) -> None:
        self.lock = threading.RLock()
        self._items = {
            SIGNATURE: b"QEMU",
            ID: _TRADITIONAL.to_bytes(4, "little"),
            RAM_SIZE: ram_size.to_bytes(8, "little"),
            CPU_COUNT: cpus.to_bytes(2, "little"),
            MAX_CPUS: cpus.to_bytes(2, "little"),
        }
        self.reset()

    def reset(self) -> None:
        """Return to the power-on state."""
        self._item = b""
        self._at = 0

    def read(self, offset: int, size: int) -> int:
        """Return the item's next byte."""
        if offset != 1 or size != 1:
            return 0
        at = self._at
        if at >= len(self._item):
            return 0
        self._at += 1
        return self._item[at]

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item."""
        if offset == 0 and size == 2:
            self._item, self._at = self._items.get(value, b""), 0
            if selected.on:
                selected(value)
