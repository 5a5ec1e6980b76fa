"""What the command line does with emulated hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyvmm.host.kit import Progress


def run_in_host(
    arguments: Sequence[str],
    *,
    memory_mib: int = 512,
    forward_sockets: Sequence[str | Path] = (),
    progress: Progress = lambda line: None,
) -> int:
    """Run `pyvmm ARGUMENTS` in an emulated host for a guest of `memory_mib`. Returns the exit status."""
    from pyvmm.host.emulated import EmulatedHost, memory_for

    argv = [os.path.abspath(sys.executable), "-m", "pyvmm.cli.main", *arguments]
    with EmulatedHost.start(memory_mib=memory_for(memory_mib), progress=progress) as host:
        return shell_status(host.run(argv, forward_sockets=forward_sockets))


def shell_status(status: int) -> int:
    """A status as the shell gives it: 128 + N for a command that signal N killed."""
    return status if status >= 0 else 128 - status
