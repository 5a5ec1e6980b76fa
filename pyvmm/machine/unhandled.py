"""Counts the guest's accesses that nothing handled, for `pyvmm status` and `--debug`.

    port, MMIO     no device claims the address: a read gives all ones, a write is dropped
    MSR            refused with #GP, by the engine; by KVM too with `--debug msr`
    hypercall      no such call, or nothing listens to the connection
    exit           of a kind that pyvmm does not handle

Handled accesses cost nothing here. An unhandled one is counted by kind and number; the first of each keeps the vCPU
and its RIP, which is that of the instruction or of the one after it (KVM steps over some I/O instructions later).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.errors import HostError
from pyvmm.hyperv.tlfs import HypercallCode, HypercallStatus, Msr
from pyvmm.kvm.abi import MsrExitReason

if TYPE_CHECKING:
    from pyvmm.hyperv.engine import Engine

LIMIT = 256
"""Maximum number of entries. Linux on this machine has some ten; a guest that scans all ports has 65536."""

PORT_NAMES = {
    0x80: "POST code; Linux's I/O delay",
    0xED: "Linux's other I/O delay",
    0x2E: "Super I/O",
    0x4E: "Super I/O",
    0xB2: "SMI command",
    0x3B4: "VGA, monochrome",
    0x3D4: "VGA",
    0x1F0: "first IDE channel",
    0x170: "second IDE channel",
    0x3E8: "COM3",
    0x2E8: "COM4",
    0xCF8: "PCI configuration",
    0xCFC: "PCI configuration",
}
"""First ports of devices that PCs have, and this machine does not."""

_PORT_SIZES = {0x2E: 2, 0x4E: 2, 0x3B4: 8, 0x3D4: 8, 0x1F0: 8, 0x170: 8, 0x3E8: 8, 0x2E8: 8, 0xCF8: 4, 0xCFC: 4}

MSR_NAMES = {
    0x8B: "microcode version",
    0x79: "microcode update (Intel)",
    0x34: "SMI count (Intel)",
    0xCE: "platform info (Intel)",
    0x1A0: "misc enable (Intel)",
    0x140: "misc feature enables (Intel)",
    0x606: "RAPL units (Intel)",
    0x611: "RAPL package energy (Intel)",
    0xC0010020: "microcode update (AMD)",
    0xC001001F: "northbridge configuration (AMD)",
    0xC0010015: "hardware configuration (AMD)",
    0xC0011029: "decode configuration (AMD)",
    0xC00102B0: "CPPC capabilities (AMD)",
    0xC0010299: "RAPL units (AMD)",
}
"""MSRs that kernels try by themselves, and for whose absence they are prepared."""


@dataclass(slots=True)
class Unhandled:
    """An entry: all unhandled accesses of one kind to one number (address, MSR, call code)."""

    kind: str  # "port read", "mmio write", "msr read", "hypercall", "exit"
    number: int
    name: str  # what it is, where that is known
    count: int
    vcpu: int | None  # the first one, and its RIP
    rip: int | None


Listener = Callable[[Unhandled, str], None]
"""listener(entry, detail): called for each access, on the vCPU's thread, with size or value of the access."""


class UnhandledLog:
    """The unhandled accesses since the machine's start, resets included. `caller()` gives vCPU and RIP.

    Its methods are called on vCPU threads, and by tests on any other.
    """

    def __init__(self, caller: Callable[[], tuple[int, int] | None]) -> None:
        self.entries: dict[tuple[str, int, str], Unhandled] = {}
        self.more = 0  # accesses that are in no entry, because there are LIMIT
        self.listener: Listener | None = None
        self._caller = caller
        self._lock = threading.Lock()

    def watch_engine(self, engine: Engine, *, all_msrs: bool) -> None:
        """Count what `engine` refuses. With `all_msrs` KVM leaves accesses that it would refuse to the engine."""
        engine.on_msr_refused = self.msr
        engine.hypercalls.on_unhandled = self.hypercall
        if all_msrs:
            engine.msr_exits |= MsrExitReason.UNKNOWN | MsrExitReason.INVAL

    def io(self, kind: str, address: int, size: int, value: int | None) -> None:
        """Count a "port read", "mmio write" and so on; `value` is None for a read."""
        name = _port_name(address) if kind.startswith("port") else ""
        self._count(kind, address, name, f"{size} byte{'s' if size > 1 else ''}{_written(value)}")

    def msr(self, kind: str, index: int, value: int | None) -> None:
        """Count a "msr read" or "msr write" that raised #GP."""
        self._count(kind, index, _msr_name(index), f"#GP{_written(value)}")

    def hypercall(self, code: int, status: int) -> None:
        """Count a hypercall."""
        text = HypercallStatus(status).name.lower().replace("_", " ")
        name = HypercallCode(code).name if code in set(HypercallCode) else ""
        self._count("hypercall", code, name, text)

    def exit(self, name: str) -> None:
        """Count an exit of a kind that pyvmm does not handle."""
        self._count("exit", 0, name, "ignored")

    def _count(self, kind: str, number: int, name: str, detail: str) -> None:
        with self._lock:
            entry = self.entries.get((kind, number, name))
            if entry is not None:
                entry.count += 1
            elif len(self.entries) >= LIMIT:
                self.more += 1
                return
            else:
                vcpu, rip = self._where()
                entry = self.entries[kind, number, name] = Unhandled(kind, number, name, 1, vcpu, rip)
        if self.listener is not None:
            self.listener(entry, detail)

    def _where(self) -> tuple[int | None, int | None]:
        try:
            return self._caller() or (None, None)
        except HostError:  # the registers cannot be read: the vCPU's next entry reports that
            return None, None

    def describe(self) -> qapi.UnhandledInfo:
        """Return the entries, the most frequent first, and the number of accesses that are in none."""
        with self._lock:
            entries = sorted(self.entries.values(), key=lambda entry: -entry.count)
            return {"accesses": [_row(entry) for entry in entries], "more": self.more}


def _row(entry: Unhandled) -> qapi.UnhandledAccess:
    return {
        "kind": entry.kind,
        "number": entry.number,
        "name": entry.name,
        "count": entry.count,
        "vcpu": entry.vcpu,
        "rip": entry.rip,
    }


def _written(value: int | None) -> str:
    return "" if value is None else f", value {value:#x}"


def _port_name(port: int) -> str:
    for first, name in PORT_NAMES.items():
        if first <= port < first + _PORT_SIZES.get(first, 1):
            return name
    return ""


def _msr_name(index: int) -> str:
    try:
        return f"Hyper-V {Msr(index).name}"
    except ValueError:
        return MSR_NAMES.get(index, "")
