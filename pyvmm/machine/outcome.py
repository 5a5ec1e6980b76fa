"""How a machine ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyvmm.hyperv.crash import CrashReport


@dataclass(slots=True)
class Outcome:
    """Why a machine ended. `text` is human-readable: the panic's line, the error. `status`: the exit status that the
    guest chose by the test devices' exit port.
    """

    kind: Literal["poweroff", "quit", "reset", "panic", "error", "exit"]
    text: str = ""
    crash: CrashReport | None = None
    status: int = 0
