"""Operations of the command line on emulated hosts: run a command, start and stop the daemon, refresh the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pyvmm.gdb_place import Place
from pyvmm.host import cache_limits, daemon
from pyvmm.host.boot_image import Progress
from pyvmm.host.client import Request, run_command
from pyvmm.host.emulated import SIZES_MIB, EmulatedHost, memory_for
from pyvmm.host.endpoint import Endpoint
from pyvmm.output import Output
from pyvmm.process import signals_as_exceptions


def _silent(line: str) -> None:
    pass


FinalStatus = Callable[[Sequence[Output], int], int]


def _unchanged_status(outputs: Sequence[Output], status: int) -> int:
    return status


def run_in_host(
    arguments: Sequence[str],
    *,
    memory_mib: int = 512,
    forward_sockets: Sequence[Place] = (),
    vsock: Path | None = None,
    progress: Progress = _silent,
    input: bool = True,
    live: bool = False,
    final_status: FinalStatus = _unchanged_status,
) -> int:
    """Run `pyvmm ARGUMENTS` in an emulated host, for a guest of `memory_mib`. Returns the exit status.

    See `Request` for `vsock`, `input` and `live`; `final_status(outputs, status)` returns the final status.
    """
    argv = [sys.executable, "-m", "pyvmm.cli.main", *arguments]
    needed = memory_for(memory_mib)
    return execute(
        argv,
        memory_mib=needed,
        forward_sockets=forward_sockets,
        vsock=vsock,
        progress=progress,
        input=input,
        live=live,
        final_status=final_status,
    )


def execute(
    argv: Sequence[str],
    *,
    memory_mib: int | None = None,
    forward_sockets: Sequence[Place] = (),
    vsock: Path | None = None,
    progress: Progress = _silent,
    input: bool = True,
    live: bool = False,
    final_status: FinalStatus = _unchanged_status,
) -> int:
    """Run a command in the daemon's host, if one runs and has the memory, else in a new host for this command."""
    request = Request(argv, forward_sockets=list(forward_sockets), vsock=vsock, input=input, live=live)
    with signals_as_exceptions():
        connection = daemon.connect(memory_mib or 0)
        if connection is not None:
            with connection:
                status = run_command(Endpoint(connection.fileno()), request)
                return final_status(request.outputs, shell_status(status))
        with EmulatedHost.start(memory_mib=memory_mib or SIZES_MIB[0], progress=progress) as host:
            return final_status(request.outputs, shell_status(host.run_request(request)))


def start(*, memory_mib: int | None = None, idle_seconds: int | None = None, progress: Progress = _silent) -> str:
    """Start the host daemon for later commands. Returns a line for the user."""
    return daemon.start(memory_mib or SIZES_MIB[1], idle_seconds or daemon.IDLE_SECONDS, progress)


def stop() -> str:
    """Stop the host daemon."""
    return daemon.stop()


def status() -> str:
    """One line about the host daemon."""
    return daemon.status()


def refresh(*, memory_mib: int | None = None, progress: Progress = _silent) -> None:
    """Rebuild kernel, initramfs and saved host, from the newest packages and pyvmm's current sources."""
    cache_limits.clear()
    EmulatedHost.start(memory_mib=memory_mib or SIZES_MIB[0], progress=progress, exact=True).stop()


def shell_status(status: int) -> int:
    """Return a status as the shell reports it: 128 + N for a command that signal N killed."""
    return status if status >= 0 else 128 - status
