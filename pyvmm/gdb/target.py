"""The machine's interface to a debugger, as `session` uses it and `pyvmm.machine.debugger` implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from pyvmm.errors import PyvmmError


class Signal(IntEnum):
    """The signals by which a stop is reported, in GDB's numbering."""

    NONE = 0
    INT = 2
    TRAP = 5
    ABRT = 6


class Kind(IntEnum):
    """What a Z packet inserts; the values are the protocol's."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


StopReason = Literal["", "swbreak", "hwbreak", "watch", "rwatch", "awatch"]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the guest stopped: on which vCPU, by which signal; `address` of a watchpoint's data or a breakpoint."""

    vcpu: int
    signal: int = Signal.TRAP
    reason: StopReason = ""
    address: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A vCPU is to execute one instruction, then further ones while RIP is in [start, end)."""

    start: int = 0
    end: int = 0


CONTINUE: Literal["continue"] = "continue"
Action = Step | Literal["continue"]


class RefusedError(PyvmmError):
    """The debugger asked for what cannot be done: memory that is not mapped, a fifth debug register."""


class Target(Protocol):
    """A machine under a debugger. All methods run on the loop's thread; those on state only while it is stopped.

    Methods that cannot do what they are asked raise RefusedError.
    """

    @property
    def vcpus(self) -> int:
        """Return the number of vCPUs; 0 once the machine has ended."""

    def attach(self, stopped: Callable[[Stop], None], ended: Callable[[int], None]) -> None:
        """Stop the machine. Later stops of it are passed to `stopped`; its end, with a status, to `ended`."""

    def detach(self) -> None:
        """Remove all breakpoints and let the machine run."""

    def interrupt(self) -> None:
        """Stop the running machine; `stopped` is called."""

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Let the vCPUs in `actions` run or step; the others stay stopped. `stopped` may be called at once."""

    def registers(self, vcpu: int) -> Mapping[str, int]:
        """Return a vCPU's registers by the names in `registers.TABLE`."""

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set some of a vCPU's registers."""

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        """Return memory at a virtual address of that vCPU, as much as is mapped, without breakpoints' bytes."""

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        """Store `data` at a virtual address of that vCPU."""

    def insert(self, vcpu: int, kind: Kind, address: int, length: int) -> None:
        """Insert a break- or watchpoint for all vCPUs; `vcpu`'s page tables translate. Again: no effect."""

    def remove(self, kind: Kind, address: int, length: int) -> None:
        """Remove a break- or watchpoint. One that is not there: no effect."""

    def describe(self, vcpu: int) -> str:
        """Return a few words about a vCPU, for the list of threads."""

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor and return its output."""

    def kill(self) -> None:
        """End the machine."""
