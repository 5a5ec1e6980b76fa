"""Loop, VM and vCPU for engines and runners to talk to, without a KVM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.errors import HostError
from pyvmm.firmware.entry import EFER_LMA, EFER_LME
from pyvmm.kvm.structs import Regs, Sregs


class FakeLoop:
    """Keeps posted work until `run`; counts readers."""

    def __init__(self) -> None:
        self.posted: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.readers: dict[int, Callable[[], Any]] = {}

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        self.posted.append((callback, args))

    def add_reader(self, fd: int, callback: Callable[[], Any]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def run(self) -> None:
        """Everything posted, and what that posts."""
        while self.posted:
            callback, args = self.posted.pop(0)
            callback(*args)


class FakeVm:
    """Remembers what the engines ask of KVM."""

    def __init__(self) -> None:
        self.msis: list[tuple[int, int]] = []
        self.caps: list[tuple[Any, ...]] = []
        self.filter: list[Any] = []
        self.routes: list[Any] = []
        self.most_routes = 4096
        self.irqfds: list[tuple[int, int, int | None]] = []
        self.eventfds: dict[int, int] = {}

    def signal_msi(self, address: int, data: int) -> bool:
        self.msis.append((address, data))
        return True

    def enable_cap(self, *args: Any) -> None:
        self.caps.append(args)

    def set_msr_filter(self, ranges: list[Any]) -> None:
        self.filter = ranges

    def set_routes(self, routes: list[Any]) -> None:
        if len(routes) > self.most_routes:
            raise HostError("too many routes")
        self.routes = list(routes)

    def irqfd(self, fd: int, gsi: int, *, resample_fd: int | None = None, assign: bool = True) -> None:
        if assign:
            self.irqfds.append((fd, gsi, resample_fd))
        else:
            self.irqfds = [each for each in self.irqfds if each[:2] != (fd, gsi)]

    def hyperv_eventfd(self, connection_id: int, fd: int, *, remove: bool = False) -> None:
        if remove:
            del self.eventfds[connection_id]
        else:
            self.eventfds[connection_id] = fd


class FakeVcpu:
    """Registers, in 64-bit mode, and a TSC that stands still."""

    def __init__(self) -> None:
        self.regs = Regs()
        self.sregs = Sregs(efer=EFER_LME | EFER_LMA)
        self.sregs.cs.l = 1
        self.tsc_khz = 2_000_000
        self.tsc = 1000
        self.msrs: dict[int, int] = {}
        self.caps: list[Any] = []

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        return {index: self.msrs.get(index, self.tsc) for index in indices}

    def set_msrs(self, values: dict[int, int]) -> None:
        self.msrs.update(values)

    def enable_cap(self, cap: Any, *args: int) -> None:
        self.caps.append(cap)
