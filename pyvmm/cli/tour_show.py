"""Output of `pyvmm tour`: text for people, or one JSON object per step for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pyvmm.guest_text import clean
from pyvmm.sizes import format_size

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of memory, in bytes: the guest's MemTotal and MemFree, and what is resident on the host."""

    total: int
    free: int
    resident: int


class TourReporter(Protocol):
    """Reports the steps of the tour; the methods are in the order of the calls."""

    def booting(self, cpus: int, memory: int) -> None:
        """Report that the machine starts."""

    def booted(self, release: str, cpus: int, seconds: float, engine: str) -> None:
        """Report that Linux has booted and runs commands."""

    def seen(self, log: Sequence[str]) -> None:
        """Report the lines of the guest's kernel log about Hyper-V."""

    def devices(self, rows: Sequence[dict[str, Any]]) -> None:
        """Report the VMBus channels, as x-query-vmbus returns them."""

    def memory(self, now: Measured, used: int = 0) -> None:
        """Report memory after the boot, or after the guest used and freed `used` bytes."""

    def resized(self, target: int, actual: int, reason: str, seconds: float, now: Measured) -> None:
        """Report the end of a resize; `reason`: why the target was not reached."""

    def over(self, shell: bool) -> None:
        """Report the end of the tour: the guest's shell follows, or its power-off."""


class TextReporter:
    """Prints text for people, in colour on a terminal."""

    def booting(self, cpus: int, memory: int) -> None:
        self._title(f"Booting Linux ({_counted(cpus, 'vCPU')}, {format_size(memory)})")

    def booted(self, release: str, cpus: int, seconds: float, engine: str) -> None:
        self._line(f"Linux {release} with {_counted(cpus, 'CPU')} is up after {seconds:.1f} s, engine {engine}")

    def seen(self, log: Sequence[str]) -> None:
        self._title("What Linux sees")
        for line in log:
            self._line(line)

    def devices(self, rows: Sequence[dict[str, Any]]) -> None:
        self._title("Devices on the VMBus")
        for row in rows:
            self._line(f"#{row['relid']:<3} {row['name']:<12} {row['state']:<8} {row['guid']}")

    def memory(self, now: Measured, used: int = 0) -> None:
        if used:
            self._row(f"{used // MIB} MiB used and freed", now)
            return
        self._title("Memory")
        self._cells("", "guest MemTotal", "guest MemFree", "host resident")
        self._row("after boot", now)

    def resized(self, target: int, actual: int, reason: str, seconds: float, now: Measured) -> None:
        if reason:
            self._line(f"reached {format_size(actual)}: {reason}")
        self._row(f"balloon {format_size(target)} ({seconds:.2f} s)", now)

    def over(self, shell: bool) -> None:
        self._title("The guest's shell: Ctrl-A x ends, Ctrl-A h lists the keys" if shell else "Powering off")

    def _row(self, label: str, now: Measured) -> None:
        self._cells(label, *(f"{size // MIB} MiB" for size in (now.total, now.free, now.resident)))

    @staticmethod
    def _title(text: str) -> None:
        text = clean(text)
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(f"\n\x1b[1;36m{text}\x1b[0m" if colour else f"\n{text}", flush=True)

    @staticmethod
    def _line(text: str) -> None:
        print(f"  {clean(text)}", flush=True)

    @staticmethod
    def _cells(label: str, *cells: str) -> None:
        print(clean(f"  {label:<26}" + "".join(f"{cell:>16}" for cell in cells)), flush=True)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


class JsonReporter:
    """Prints JSON lines for programs: sizes in bytes, times in seconds."""

    def booting(self, cpus: int, memory: int) -> None:
        self._step("booting", cpus=cpus, memory=memory)

    def booted(self, release: str, cpus: int, seconds: float, engine: str) -> None:
        self._step("booted", release=release, cpus=cpus, seconds=round(seconds, 3), engine=engine)

    def seen(self, log: Sequence[str]) -> None:
        self._step("seen", log=list(log))

    def devices(self, rows: Sequence[dict[str, Any]]) -> None:
        self._step("devices", devices=list(rows))

    def memory(self, now: Measured, used: int = 0) -> None:
        self._step("memory", used=used, **asdict(now))

    def resized(self, target: int, actual: int, reason: str, seconds: float, now: Measured) -> None:
        took = round(seconds, 3)
        self._step("resized", target=target, actual=actual, reason=reason, seconds=took, **asdict(now))

    def over(self, shell: bool) -> None:
        """Print nothing: the exit status is the result."""

    @staticmethod
    def _step(step: str, **about: Any) -> None:
        print(json.dumps({"step": step} | about, default=str), flush=True)
