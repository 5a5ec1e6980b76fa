"""Computes the paths of Unix sockets that must be reachable from outside an emulated host.

The files are the outer machine's, but a Unix socket belongs to the kernel that created it: a server inside binds a
socket in the inner /run, and the outer side, which listens on the path that the user gave, forwards to it.
Both sides compute the same name, so that it need not be sent.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pyvmm.gdb_place import Place, show_place
from pyvmm.paths import INSIDE

VARIABLE = INSIDE

FOLDER = "/run/pyvmm-sockets"


def inside() -> bool:
    """Return whether this process runs in an emulated host."""
    return VARIABLE in os.environ


def user_pid() -> int:
    """Return the process id that the user sees: inside an emulated host, that of the outer command."""
    outer = os.environ.get(VARIABLE, "")
    return int(outer) if outer.isdecimal() else os.getpid()


def inner_socket(place: str | Place) -> str:
    """Return the path of the inner socket to which connections to the outer `place` are forwarded."""
    key = f"tcp {show_place(place)}" if isinstance(place, tuple) else os.path.abspath(place)
    name = hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    return f"{FOLDER}/{name}"


def socket_place(place: Place) -> Place:
    """Return where a server for `place` must listen: there, or at the inner socket in an emulated host."""
    if not inside():
        return place
    os.makedirs(FOLDER, mode=0o700, exist_ok=True)
    return Path(inner_socket(place))


def dialler_socket(path: Path) -> str:
    """Return the path of the inner socket by which programs at the outer `path`_PORT are reached."""
    return inner_socket(f"{path}#")


def socket_path(path: str | Path) -> str:
    """Return the path that a server for `path` must bind: `path`, or the inner socket in an emulated host."""
    return str(socket_place(Path(path)))
