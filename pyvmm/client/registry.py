"""The registry of running machines: a folder that holds NAME.json and NAME.sock for each.

    $XDG_RUNTIME_DIR/pyvmm/      or /tmp/pyvmm-UID/, only for this user
        vm.json                  pid, command line, socket; locked as long as the machine runs
        vm.sock                  its monitor
        vm.gdb                   for debuggers, with --gdb

Only the lock shows that a machine runs: the kernel releases it however the process ends, so an unlocked entry is
stale, and the next lookup removes it. The pid alone does not suffice: another process could have it by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.files import Shape, parse_object
from pyvmm.paths import open_private, runtime_folder
from pyvmm.sizes import is_size
from pyvmm.unix_socket import is_listening

SETTLING = 15.0
"""Seconds for which a socket may accept but not answer: an emulated host's does until the inner monitor is up."""

DEFAULT_NAME = "vm"
"""Default name of a machine; the second such machine is vm2."""

ENTRY: dict[str, Shape] = {"socket": str, "pid": int, "argv": [str], "started": (int, float)}
"""Members of NAME.json."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A running machine, or a monitor socket given by path (then only `socket` is meaningful)."""

    name: str
    socket: Path
    pid: int = 0
    argv: list[str] = field(default_factory=list)
    started: float = 0.0  # seconds of the wall clock
    shared: bool = False  # the process is more than this machine, and must get no signals meant for it


class Registration:
    """A registered name, held until `release` or the end of the process. The monitor must listen at `socket`."""

    def __init__(self, entry: Entry, file: Path, lock: int) -> None:
        self.entry = entry
        self._file = file
        self._lock = lock

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def socket(self) -> Path:
        return self.entry.socket

    def release(self) -> None:
        """Release the name. Harmless twice."""
        if self._lock >= 0:
            _remove(self._file)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def check_name(name: str) -> str:
    """Return `name`. Raises ConfigError if it is not a valid machine name."""
    if not _NAME.fullmatch(name) or name.endswith((".json", ".sock")):
        raise ConfigError(f"{name[:60]!r} cannot name a VM: use up to 48 letters, digits, dots, dashes, underscores")
    if is_size(name):
        raise ConfigError(f"{name!r} cannot name a VM: it reads as a size, as in `pyvmm balloon {name}`")
    return name


def claim(
    name: str | None = None, argv: Sequence[str] = (), socket: Path | None = None, *, shared: bool = False
) -> Registration:
    """Register `name` (None: the first free of vm, vm2, ...). ConfigError if a running machine has it.

    `socket` is where the monitor will listen; the default is the folder's NAME.sock. `shared`: see Entry.
    """
    if name is not None:
        made = _claim(check_name(name), argv, socket, shared=shared)
        if made is None:
            taken = next((each for each in running() if each.name == name), None)
            who = f" (pid {taken.pid})" if taken else ""
            raise ConfigError(f"a VM named {name!r} runs already{who}: choose another --name, or `pyvmm stop {name}`")
        return made
    number = 1
    while True:
        made = _claim(DEFAULT_NAME if number == 1 else f"{DEFAULT_NAME}{number}", argv, socket)
        if made is not None:
            return made
        number += 1


def _claim(name: str, argv: Sequence[str], socket: Path | None, *, shared: bool = False) -> Registration | None:
    file = runtime_folder() / f"{name}.json"
    place = socket.absolute() if socket else file.with_suffix(".sock")
    entry = Entry(name, place, os.getpid(), list(argv), time.time(), shared)
    while True:
        try:
            lock = open_private(file)
        except OSError as error:
            raise HostError(f"{file}: {error.strerror}") from error
        try:
            if not _try_lock(lock):
                os.close(lock)
                return None
            if not _same(lock, file):  # the former owner removed the file between our open and lock
                os.close(lock)
                continue
            if os.fstat(lock).st_size and not socket:  # a killed one's, whose socket would pass for ours meanwhile
                _remove_socket(file)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(asdict(entry) | {"socket": str(entry.socket)}).encode(), 0)
        except OSError as error:
            os.close(lock)
            raise HostError(f"{file}: {error.strerror}") from error
        return Registration(entry, file, lock)


def running() -> list[Entry]:
    """Return this user's running machines, oldest first. Removes stale entries on the way."""
    return sorted(_running(runtime_folder()), key=lambda each: (each.started, each.name))


def _running(folder: Path) -> Iterator[Entry]:
    for file in sorted(folder.glob("*.json")):
        try:
            lock = open_private(file, create=False)
        except OSError:
            continue
        try:
            if _try_lock(lock):
                if _same(lock, file):
                    _remove(file)
                continue
            entry = _parse(file.stem, os.pread(lock, 1 << 20, 0))
        finally:
            os.close(lock)
        if entry is not None:
            yield entry


def is_starting(entry: Entry, *, silent: bool = False) -> bool:
    """Return whether the machine is registered but has no monitor yet: its image or emulated host is being made.

    `silent`: its socket accepts connections, but has not answered yet.
    """
    try:
        young = time.time() - entry.socket.stat().st_ctime < SETTLING
    except FileNotFoundError:
        young = silent = True
    return young and silent and any(each == entry for each in running())


def find(which: str | os.PathLike[str] | None = None) -> Entry:
    """Return the machine named `which`, or at that socket path, or the only running one. ConfigError otherwise."""
    if which is not None:
        text = os.fspath(which)
        if "/" in text or text.endswith(".sock"):
            return Entry(Path(text).stem, Path(text))
    known = running()
    shown = ", ".join(each.name for each in known)
    if which is None:
        match known:
            case [only]:
                return only
            case []:
                raise ConfigError("no VM is running: `pyvmm run` starts one")
            case _:
                raise ConfigError(f"{len(known)} VMs are running ({shown}): name one")
    for each in known:
        if each.name == text:
            return each
    hint = f"running: {shown}" if known else "none is running"
    raise ConfigError(f"no VM named {text!r} ({hint})")


def stall_note(socket: Path) -> Path:
    """Return the path of the file in which a machine's watchdog reports a stalled loop (`pyvmm.watchdog`)."""
    return socket.with_suffix(".stall")


def _parse(name: str, text: bytes) -> Entry | None:
    """Parse an entry as `_claim` writes it; None while the write is in progress."""
    try:
        found = parse_object(text.decode("utf-8", "replace"), ENTRY)
        if not 0 <= found["pid"] < 1 << 31:
            return None
        shared = found.get("shared") is True
        return Entry(name, Path(found["socket"]), found["pid"], found["argv"], float(found["started"]), shared)
    except ValueError:
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _remove(file: Path) -> None:
    """Remove an entry whose lock we hold, its socket first (unless some process has that socket bound)."""
    _remove_socket(file)
    stall_note(file).unlink(missing_ok=True)
    _remove_socket(file, ".gdb")
    file.unlink(missing_ok=True)


def _remove_socket(file: Path, suffix: str = ".sock") -> None:
    socket = file.with_suffix(suffix)
    with contextlib.suppress(HostError):
        if not is_listening(socket):
            socket.unlink(missing_ok=True)
