"""Guests of failed tests that are kept (--pyvmm-keep-failed): `pyvmm status`, `gdb`, `balloon` and others reach them.

    outer pytest                                   a failed test's process
    a name and a socket, with each test  ------->
    registers the name  <------------------------  {"kind": "kept"}: serves its monitor there
    waits for Ctrl-C, or until all have ended      runs on, until `pyvmm stop` or the end of its parent
                        <------------------------  {"kind": "gone"}, from its parent

In the emulated host the sockets are forwarded from the start, so there are only so many of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.client import registry
from pyvmm.paths import runtime_folder

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

MOST = 4
"""Most guests kept, each with its memory."""


def free_names(worker: str) -> list[str]:
    """Return names for kept guests that no machine has."""
    taken = {entry.name for entry in registry.running()}
    stem = f"failed-{worker}" if worker else "failed"
    numbered = (stem if number == 1 else f"{stem}{number}" for number in range(1, 100))
    return [name for name in numbered if name not in taken][:MOST]


def socket_of(name: str) -> Path:
    """Return where the monitor of a kept guest listens, for commands outside."""
    return runtime_folder() / f"{name}.sock"


def serve(guest: VM, name: str, socket: str, kept: Callable[[], None]) -> None:
    """In a failed test's process: serve the guest's monitor until it ends."""
    from pyvmm.control.server import ControlServer
    from pyvmm.host.inside import socket_place, user_pid
    from pyvmm.launch.confined import open_listeners

    with contextlib.ExitStack() as stack:
        listeners = open_listeners([socket_place(Path(socket))], guest.loop, stack)
        guest.machine.monitor.name = name
        guest.machine.monitor.pid = user_pid()
        stack.enter_context(ControlServer(guest.loop, guest.machine.monitor, *listeners))
        kept()
        while not guest.ended:
            guest.loop.step(None)


class KeptGuests:
    """The outer pytest's side: names for kept guests, registered as long as the guests run."""

    def __init__(self, names: list[str]) -> None:
        self._free = names
        self._kept: dict[str, registry.Registration] = {}

    @property
    def sockets(self) -> list[str]:
        """Where monitors of kept guests will listen."""
        return [str(socket_of(name)) for name in self._free]

    def offer(self) -> list[str] | None:
        """Return name and socket for a guest, should its test fail; None if enough are kept."""
        return [self._free[0], str(socket_of(self._free[0]))] if self._free else None

    def take(self, message: dict[str, Any], nodeid: str) -> str:
        """Register or release a guest's name, as the inner pytest says. Returns a line for the user."""
        name = message["name"]
        if message["kind"] == "gone":
            if name in self._kept:
                self._kept.pop(name).release()
            return ""
        self._free.remove(name)
        self._kept[name] = registry.claim(name, ["pytest", nodeid])
        return f"pyvmm: kept {name}: pyvmm status {name}, pyvmm gdb {name}, pyvmm stop {name}"

    def __bool__(self) -> bool:
        return bool(self._kept)

    def close(self) -> None:
        """Release the names."""
        while self._kept:
            self._kept.popitem()[1].release()
