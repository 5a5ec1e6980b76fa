"""Confines a session's process, after the monitor's sockets have been opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyvmm import process
from pyvmm.control.door import Door
from pyvmm.errors import ConfigError
from pyvmm.host.inside import FOLDER, inside
from pyvmm.loop import Loop
from pyvmm.machine import Machine
from pyvmm.paths import runtime_folder
from pyvmm.sandbox.confine import Mode, confine
from pyvmm.sandbox.sweeper import removed_at_the_end


def open_doors(
    sockets: Iterable[str], loop: Loop, stack: contextlib.ExitStack, *, confined: bool = False
) -> list[Door]:
    """Listen at `sockets` until `stack` ends; clients wait until there is a monitor. Raises ConfigError if one is in
    use. `confined`: the process will not be able to remove sockets outside pyvmm's own folder.
    """
    doors: list[Door] = []
    for path in map(Path, sockets):
        doors.append(Door(loop, path))
        stack.callback(doors[-1].close)
    if confined and process.is_own():
        own = own_folder()
        elsewhere = [door.path.absolute() for door in doors if door.path.absolute().parent != own.absolute()]
        stack.enter_context(removed_at_the_end(elsewhere))
    return doors


def own_folder() -> Path:
    """Return the folder of pyvmm's own sockets and of the registry."""
    return Path(FOLDER) if inside() else runtime_folder()


def confine_session(mode: Mode, machine: Machine, doors: Sequence[Door]) -> None:
    """Confine this process, if it is pyvmm's own. All files are open by then, and no thread has been started.

    Raises ConfigError if `require` cannot be met.
    """
    if not process.is_own():
        if mode == "require":
            raise ConfigError("--sandbox require confines a process for good, and this one is not pyvmm's own")
        return
    machine.boot_files.keep(machine.config.kernel, machine.config.initrd)
    machine.monitor.sandbox = confine(mode, [own_folder()] if doors else []).describe()
