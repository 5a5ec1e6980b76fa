"""Where a guest runs: on this machine's KVM, or in the emulated host, with the same command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.host.inside import inside


def run_somewhere(
    command: str,
    here: Callable[[str, list[Path]], int],
    *,
    host: str,
    name: str | None,
    memory: int,
    qmp: Path | None = None,
    control_socket: Path | None = None,
) -> int:
    """Claim a name and run `here(name, sockets)`, or the user's whole command line in the emulated host.

    `sockets` are where monitors shall listen. `control_socket` is set by the outer side for the inner one, where the
    name is claimed already. Returns the exit status; raises ConfigError and HostError.
    """
    if inside():
        return here(name or "vm", _present(control_socket, qmp))
    emulated = wants_emulated(host)
    from pyvmm.control import registry

    with registry.claim(name, sys.argv) as registration:
        sockets = _present(registration.socket, qmp)
        if not emulated:
            return here(registration.name, sockets)
        extra = ["--name", registration.name, "--control-socket", str(registration.socket)]
        return run_emulated([command, *extra, *_arguments(command)], memory, sockets)


def runs_here(host: str) -> bool:
    """Whether this process's KVM runs the guest: `wants_emulated` the other way round, without a word about it."""
    if inside():
        return True
    from pyvmm.host.probe import probe

    return host != "emulated" and probe().usable


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
    say(f"{found.reason}: using the emulated host")
    return True


def run_emulated(arguments: Sequence[str], memory: int, sockets: Sequence[Path]) -> int:
    """Run `pyvmm ARGUMENTS` in the emulated host; its exit status."""
    from pyvmm.host.commands import run_in_host

    status: int = run_in_host(arguments, memory_mib=memory >> 20, forward_sockets=sockets, progress=say)
    return status


def _arguments(command: str) -> list[str]:
    """What the user gave after the command's name."""
    arguments = sys.argv[1:]
    return arguments[arguments.index(command) + 1 :] if command in arguments else []


def _present(*paths: Path | None) -> list[Path]:
    return [path for path in paths if path is not None]


def say(text: str) -> None:
    """One line of progress on stderr, for people."""
    print(f"pyvmm: {text}", file=sys.stderr, flush=True)
