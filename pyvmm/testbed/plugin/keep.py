"""Guests of failed tests that are kept (--pyvmm-keep-failed): `pyvmm status`, `gdb`, `balloon` and others reach them.

    outer pytest                                   a failed test's process
    a name and a socket, with each test  ------->
    shows the name  <----------------------------  {"kind": "kept"}: serves its monitor (VM.publish)
    waits for Ctrl-C, or until all have ended      runs on, until `pyvmm stop` or the end of its parent
                        <------------------------  {"kind": "gone"}, from its parent

In the emulated host the name is the outer pytest's to register, and the sockets are forwarded from the start, so
there are only so many of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.client import registry
from pyvmm.errors import PyvmmError
from pyvmm.host.inside import inside
from pyvmm.paths import runtime_folder

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

Offer = tuple[str, str, int]
"""A name for a guest, its socket, and the process id by which its user knows it in an emulated host."""

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


def serve(guest: VM, offer: Offer, kept: Callable[[], None]) -> None:
    """In a failed test's process: serve the guest's monitor until it ends."""
    name, socket, pid = offer
    try:
        guest.publish(name, Path(socket) if inside() else None)
        if inside():
            guest.machine.monitor.pid = pid
    except PyvmmError as error:
        print(f"pyvmm: {name} cannot be kept: {error}", file=sys.stderr, flush=True)
        return
    kept()
    while not guest.ended:
        guest.loop.step(None)


class KeptGuests:
    """The outer pytest's side: names for kept guests; `register` if their own processes cannot."""

    def __init__(self, names: list[str], *, register: bool) -> None:
        self._free = names
        self._register = register
        self._kept: dict[str, registry.Registration | None] = {}

    @property
    def sockets(self) -> list[str]:
        """Where monitors of kept guests will listen."""
        return [str(socket_of(name)) for name in self._free]

    def offer(self) -> Offer | None:
        """Return what a guest is kept by, should its test fail; None if enough are kept."""
        return (self._free[0], str(socket_of(self._free[0])), os.getpid()) if self._free else None

    def take(self, message: dict[str, Any], nodeid: str) -> str:
        """Add or remove a guest, as the inner pytest says. Returns a line for the user."""
        name = message["name"]
        if message["kind"] == "gone":
            self._release(name)
            return ""
        self._free.remove(name)
        self._kept[name] = registry.claim(name, ["pytest", nodeid], shared=True) if self._register else None
        return f"pyvmm: kept {name}: pyvmm status {name}, pyvmm gdb {name}, pyvmm stop {name}"

    def __bool__(self) -> bool:
        return bool(self._kept)

    def close(self) -> None:
        """Release the names."""
        for name in list(self._kept):
            self._release(name)

    def _release(self, name: str) -> None:
        if registration := self._kept.pop(name, None):
            registration.release()
