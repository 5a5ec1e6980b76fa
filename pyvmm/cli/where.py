"""Where a guest runs: on this machine's KVM, or in the emulated host, with the same command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.host.inside import inside

__all__ = ["inside", "run_emulated", "wants_emulated"]


def wants_emulated(host: str) -> bool:
    """Whether the guest goes to the emulated host. Raises ConfigError if nothing can run it."""
    if host == "emulated":
        return True
    from pyvmm.host.probe import probe

    found = probe()
    if found.usable:
        return False
    if host == "local":
        raise ConfigError(f"--host local: {found.reason}; `pyvmm doctor` says more")
    say(f"{found.reason}: using the emulated host (slower; --host local insists)")
    return True


def run_emulated(arguments: Sequence[str], memory: int, sockets: Sequence[Path]) -> int:
    """Run `pyvmm ARGUMENTS` in the emulated host; its exit status."""
    from pyvmm.host.commands import run_in_host

    return run_in_host(["pyvmm", *arguments], memory_mib=memory >> 20, forward_sockets=sockets, progress=say)


def say(text: str) -> None:
    """One line on stderr, for people."""
    print(f"pyvmm: {text}", file=sys.stderr, flush=True)


Progress = Callable[[str], None]
