"""Selects the host that runs a guest: this computer's KVM, or the emulated host with the same command line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb_place import Place, gdb_place
from pyvmm.guest_text import one_line
from pyvmm.host.inside import inside
from pyvmm.launch import exit_status

if TYPE_CHECKING:
    from pyvmm.machine.config import MachineConfig
    from pyvmm.output import Output


def dispatch_run(
    words: Sequence[str],
    make_config: Callable[[], MachineConfig],
    run_local: Callable[[MachineConfig, list[Path]], int],
    *,
    host: str,
    name: str | None,
    qmp: Path | None = None,
    gdb: str | None = None,
    vsock: Path | None = None,
    control_socket: Path | None = None,
    input: bool = True,
    any_kvm: bool = False,
) -> int:
    """Claim a name, make the machine's config and run `run_local(config, sockets)`, or all of `pyvmm WORDS` in the
    emulated host.

    The name comes first: `make_config` may build an image for minutes, and the registry shows meanwhile that the
    machine is starting. `sockets` are the paths where monitors listen. `control_socket` is set by the outer
    side for the inner one, where the name is claimed already. `gdb` and `vsock` are the options' values. `input`:
    whether the command reads standard input. `any_kvm`: the guest is so small that `auto` takes a slow KVM, too.
    Returns the exit status; raises ConfigError and HostError.
    """
    if inside():
        config = make_config()
        config.name = name or "vm"
        return run_local(config, _present(control_socket, qmp))
    from pyvmm.client import registry
    from pyvmm.process import signals_as_exceptions

    if host == "local" and not any_kvm:
        wants_emulated(host)  # fail now, not after minutes of building an image
    with registry.claim(name, ["pyvmm", *words]) as registration:
        with signals_as_exceptions():  # clean up a half-built image and its build processes
            config = make_config()
        config.name = registration.name
        sockets = _present(registration.socket, qmp)
        if (any_kvm and host != "emulated" and has_kvm()) or not wants_emulated(host):
            return run_local(config, sockets)
        extra = ["--name", registration.name, "--control-socket", str(registration.socket)]
        place = gdb_place(gdb, registration.socket)
        places: list[Place] = [*sockets, *([] if place is None else [place])]
        with _locked_here(config):
            return run_emulated(
                [words[0], *extra, *words[1:]], config.maximum_memory, places, vsock=vsock, input=input
            )


@contextmanager
def _locked_here(config: MachineConfig) -> Iterator[None]:
    """Lock the disks' files while an emulated host uses them: locks inside do not reach the server of the files."""
    with ExitStack() as stack:
        for spec in config.disks:
            from pyvmm.disks.open import open_locked

            stack.callback(os.close, open_locked(spec))
        yield


def runs_here(host: str) -> bool:
    """Return whether this process's KVM runs the guest: the opposite of `wants_emulated`, without output."""
    if inside():
        return True
    from pyvmm.launch.probe import probe

    return host != "emulated" and probe().usable


def has_kvm() -> bool:
    """Return whether this computer's KVM can be used at all, however slow it is for Linux."""
    from pyvmm.kvm import Kvm

    try:
        with Kvm():
            return True
    except HostError:
        return False


def wants_emulated(host: str) -> bool:
    """Return whether the guest needs the emulated host. Raises ConfigError if no host can run it."""
    if host == "emulated":
        return True
    from pyvmm.launch.probe import probe

    found = probe()
    if found.usable:
        return False
    if host == "local":
        raise ConfigError(f"--host local: {found.reason}; `pyvmm doctor` says more")
    print_message(f"{found.reason}: using the emulated host")
    return True


def run_emulated(
    arguments: Sequence[str],
    memory: int,
    sockets: Sequence[Place],
    *,
    vsock: Path | None = None,
    input: bool = True,
    live: bool = False,
) -> int:
    """Run `pyvmm ARGUMENTS` in the emulated host and return its exit status.

    `input`: whether the command reads standard input; `live`: if it does not, its outputs are a terminal inside, too.
    """
    from pyvmm.host.commands import run_in_host

    status: int = run_in_host(
        arguments,
        memory_mib=memory >> 20,
        forward_sockets=sockets,
        vsock=vsock,
        progress=print_message,
        input=input,
        live=live,
        final_status=partial(final_status_emulated, ended=": the machine was ended"),
    )
    return status


def final_status_emulated(outputs: Sequence[Output], status: int, *, ended: str = "") -> int:
    """Return the exit status of a command in the emulated host, corrected by the errors of the outer outputs: inside,
    each failed one was a broken pipe, or a terminal that hung up. `ended` is the message's text about the command.
    """
    for output in outputs:
        if output.error is not None and output.fd != 2:
            by_that = status in (exit_status.PIPE, exit_status.HANGUP)
            if output.error.errno != errno.EPIPE:
                print_message(f"{output.name}: {output.error.strerror}{ended if by_that else '; the rest is lost'}")
            elif by_that and ended:
                print_message(f"the reader of {output.name} has exited{ended}")
            if status == 0 or by_that:
                status = exit_status.status_of(output.error)
        elif output.lost and output.error is None:
            print_message(f"{output.name}: {output.lost} bytes were not read and are lost")
            status = status or exit_status.ERROR
    return status


def _present(*paths: Path | None) -> list[Path]:
    return [path for path in paths if path is not None]


def print_message(text: str) -> None:
    """Print one line of progress on stderr, for people."""
    print(f"pyvmm: {one_line(text)}", file=sys.stderr, flush=True)
