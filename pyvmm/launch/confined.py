"""Confines a session's process, after the monitor's sockets have been opened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyvmm import process
from pyvmm.control.listener import Listener
from pyvmm.errors import ConfigError
from pyvmm.gdb_place import Place
from pyvmm.host.inside import FOLDER, inside
from pyvmm.loop import Loop
from pyvmm.machine import Machine
from pyvmm.paths import runtime_folder
from pyvmm.sandbox.confine import Mode, confine
from pyvmm.sandbox.sweeper import removed_at_the_end


def open_listeners(
    sockets: Iterable[Place], loop: Loop, stack: contextlib.ExitStack, *, confined: bool = False
) -> list[Listener]:
    """Listen at `sockets` until `stack` ends; clients wait until there is a monitor. Raises ConfigError if one is in
    use. `confined`: the process will not be able to remove sockets outside pyvmm's own folder.
    """
    listeners: list[Listener] = []
    for place in sockets:
        listeners.append(Listener(loop, place))
        stack.callback(listeners[-1].close)
    if confined and process.is_own():
        own = own_folder()
        files = [each.path.absolute() for each in listeners if each.is_file]
        elsewhere = [path for path in files if path.parent != own.absolute()]
        stack.enter_context(removed_at_the_end(elsewhere))
    return listeners


def own_folder() -> Path:
    """Return the folder of pyvmm's own sockets and of the registry."""
    return Path(FOLDER) if inside() else runtime_folder()


def confine_session(mode: Mode, machine: Machine, listeners: Sequence[Listener]) -> None:
    """Confine this process, if it is pyvmm's own. All files are open by then, and no thread has been started.

    Raises ConfigError if `require` cannot be met.
    """
    if not process.is_own():
        if mode == "require":
            raise ConfigError(
                "--sandbox require is not possible in a process that is not pyvmm's own: confinement is permanent"
            )
        return
    files = (module.source for module in machine.config.modules if isinstance(module.source, Path))
    machine.boot_files.keep(machine.config.kernel, machine.config.initrd, *files)
    machine.monitor.sandbox = confine(mode, [own_folder()] if listeners else []).describe()
