"""The Unix sockets of `--vsock PATH`: PATH, where programs connect, and those at PATH_PORT, to which the guest
connects.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

from pyvmm import process
from pyvmm.errors import ConfigError
from pyvmm.host.inside import dialler_socket, inside, socket_place
from pyvmm.launch.confined import open_listeners
from pyvmm.loop import Loop
from pyvmm.machine import Machine
from pyvmm.sandbox.dialler import Dialler, connect_to
from pyvmm.sandbox.helper import Done
from pyvmm.unix_socket import PATH_LIMIT

LONGEST_PORT = len("_4294967295")


class VsockPrograms:
    """Listens at `path`. `confined`: the process will be able to make no sockets, so a child of it does."""

    def __init__(self, path: Path, loop: Loop, *, confined: bool) -> None:
        if len(str(path)) + LONGEST_PORT > PATH_LIMIT:
            raise ConfigError(f"--vsock {path}: longer than {PATH_LIMIT - LONGEST_PORT} bytes; choose a shorter path")
        self._path = path
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            place = socket_place(path)
            (self.listener,) = open_listeners([place], loop, stack, confined=confined)
            self._dialler: Dialler | None = None
            if process.is_own() and (confined or inside()):
                outer = Path(dialler_socket(path)) if inside() else None
                self._dialler = Dialler(path.absolute(), loop, outer=outer)
                stack.callback(self._dialler.close)
            self._stack = stack.pop_all()

    def serve(self, machine: Machine) -> None:
        """Connect programs and guest from now on."""
        vsock = machine.services.vsock(machine.loop)
        vsock.programs = self._dialler.dial if self._dialler is not None else self._dial
        self.listener.open(vsock.accept)
        self._stack.callback(vsock.close)

    def _dial(self, port: int, done: Done) -> None:
        done(connect_to(self._path, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
