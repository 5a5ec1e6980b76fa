"""`pyvmm` with guests on this computer's own KVM, even one that is too slow for Linux: python run_here.py run ...

With ATTEMPTS=FOLDER,PID,FD in the environment each of the machine's threads first tries what a confined process must
not be able to do (pyvmm.sandbox.attempts), and writes what came of it as a line of JSON to the descriptor.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pyvmm.cli.main import main
from pyvmm.launch import where
from pyvmm.machine.machine import Machine
from pyvmm.machine.runner import VcpuThread
from pyvmm.sandbox.attempts import attempts
from pyvmm.trace.writer import FileSink


def trying(thread: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, after the attempts, at its first call."""
    folder, victim, report = os.environ["ATTEMPTS"].split(",")
    tried = []

    def wrapper(*arguments: Any) -> Any:
        if not tried:
            tried.append(True)
            line = json.dumps({"thread": thread, "outcomes": attempts(Path(folder), int(victim))})
            os.write(int(report), line.encode() + b"\n")
        return method(*arguments)

    return wrapper


if __name__ == "__main__":
    where.wants_emulated = lambda host: False
    if "ATTEMPTS" in os.environ:
        VcpuThread._run = trying("vcpu", VcpuThread._run)
        Machine.run = trying("loop", Machine.run)
        FileSink._run = trying("trace", FileSink._run)
    sys.exit(main())
