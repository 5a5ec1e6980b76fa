"""pyvmm's own folders and files (runtime folder, cache): their places, modes and safety checks.

    runtime folder   $XDG_RUNTIME_DIR/pyvmm or /tmp/pyvmm-UID    names, monitor sockets and locks of running machines
    cache folder     $PYVMM_CACHE, or pyvmm in $XDG_CACHE_HOME or ~/.cache    packages, kernels, images, saved hosts

All of it belongs to one user: folders have mode 0700 and files 0600 (or 0700), whatever the umask is. A folder or
file is checked with lstat before it is used, and refused if another user owns it, could write to it, or put a link
in its place. Files that a user names (a trace, a console's output) follow the umask, and are not handled here.

In an emulated host the files belong to the outer user, whom the inner kernel does not know, and only that user's
rights count: owners are not compared.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from pyvmm.errors import HostError

INSIDE = "PYVMM_INSIDE_HOST"
"""Environment variable of an emulated host: the process id of the outer command that this one runs for."""

_OTHERS_WRITE = 0o022
_TEMPORARY = ".new-"


def runtime_folder() -> Path:
    """Return the folder of running machines' sockets, locks and names, made if needed. HostError if untrusted."""
    if INSIDE in os.environ:
        return private_folder(Path("/run/pyvmm"), "the emulated host's /run is damaged: `pyvmm host stop`")
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "pyvmm") if base and _is_users_folder(base) else Path(f"/tmp/pyvmm-{os.geteuid()}")
    return private_folder(folder, "remove it, or set XDG_RUNTIME_DIR to a folder you own")


def _is_users_folder(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def cache_folder(*parts: str) -> Path:
    """Return a folder in the cache, which may not exist yet. Raises HostError if others could write to the cache."""
    base = os.environ.get("PYVMM_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyvmm")
    try:
        found = os.stat(base) if _is_users_link(base) else os.lstat(base)
        if not stat.S_ISREG(found.st_mode):  # at a file, making the folder fails with a clear error
            _check_folder(base, found)
    except FileNotFoundError:
        pass  # the caller that writes there makes it
    except OSError as error:
        raise HostError(f"cache folder {base}: {error.strerror}; set PYVMM_CACHE to one you own") from error
    except _Untrusted as error:
        raise HostError(f"cache folder {base} {error}; set PYVMM_CACHE to one you own") from error
    return Path(base, *parts)


class _Untrusted(Exception):
    """A folder or file cannot be trusted; the text says why."""


def is_own(found: os.stat_result) -> bool:
    """Return whether an lstat result belongs to this process's user."""
    return found.st_uid == os.geteuid() or INSIDE in os.environ


def _is_users_link(path: str) -> bool:
    """Return whether `path` is a link made by the user, to a larger disk for instance."""
    found = os.lstat(path)
    return stat.S_ISLNK(found.st_mode) and is_own(found)


def _check_folder(path: str | Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _Untrusted("is not yours alone: it is a link")
    if not stat.S_ISDIR(found.st_mode):
        raise _Untrusted("is not yours alone: it is no folder")
    if not is_own(found):
        raise _Untrusted("is not yours alone: another user owns it")
    if found.st_mode & _OTHERS_WRITE:
        raise _Untrusted(f"is not yours alone: others can write there (`chmod go-w {path}` ends that)")


def make_folder(path: Path) -> None:
    """Make a folder and its parents, each with mode 0700 whatever the umask. Raises OSError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    except FileNotFoundError:
        make_folder(path.parent)
        make_folder(path)
        return
    os.chmod(path, 0o700)  # the umask may have removed the owner's own rights


def private_folder(path: Path, advice: str) -> Path:
    """Return the folder at `path`, private to this user, made if needed. Its parent must exist.

    Raises HostError, with `advice` as next step, if it cannot be made or trusted.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            found = os.lstat(path)
            _check_folder(path, found)
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.chmod(path, 0o700)
        else:
            os.chmod(path, 0o700)
    except OSError as error:
        raise HostError(f"folder {path}: {error.strerror}; {advice}") from error
    except _Untrusted as error:
        raise HostError(f"folder {path} {error}; {advice}") from error
    return path


def open_private(path: Path, *, create: bool = True) -> int:
    """Open the user's own file at `path`, mode 0600, for reading and writing. Raises OSError.

    A link, a pipe, a file of another user: PermissionError. `create` False: FileNotFoundError if it is missing.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except PermissionError:
        # Made under a umask that removes the owner's rights, by a process that has not restored them yet or died.
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or not is_own(found) or found.st_mode & 0o600 == 0o600:
            raise
        os.chmod(path, 0o600)
        descriptor = os.open(path, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not is_own(found) or found.st_mode & _OTHERS_WRITE:
            raise PermissionError(1, "is not a file of yours alone: remove it", os.fspath(path))
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_private(target: Path, data: bytes) -> None:
    """Write a file atomically: a reader finds the old contents or the new. Raises OSError."""
    make_folder(target.parent)
    with _temporary(target.parent, folder=False) as (path, descriptor):
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, 0o600)
        os.replace(path, target)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent` that is removed at the end; the next call removes those of killed processes."""
    make_folder(parent)
    with _temporary(parent, folder=True) as (path, _):
        yield path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder that becomes `target` at the end, or is removed if the block fails. Raises OSError."""
    with scratch_folder(target.parent) as made:
        yield made
        _make_private(made)
        try:
            made.rename(target)
        except OSError:  # it exists
            with scratch_folder(target.parent) as old:
                target.rename(old / "was")
                made.rename(target)


@contextmanager
def _temporary(parent: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """Make a folder or file in `parent`, and a descriptor that holds its lock: unlocked ones are left over.

    Creation and the search for leftovers exclude each other by a lock on `parent`. In a folder that is
    temporary itself (and so locked) no other process creates or searches.
    """
    lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not parent.name.startswith(_TEMPORARY):
            flock(lock, LOCK_EX)
            remove_leftovers(parent)
        if folder:
            path = tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent)
            os.chmod(path, 0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            descriptor, path = tempfile.mkstemp(prefix=_TEMPORARY, dir=parent)
        flock(descriptor, LOCK_EX)
    finally:
        os.close(lock)
    try:
        yield Path(path), descriptor
    finally:
        _remove(path)  # unless it was renamed to its final name
        os.close(descriptor)


def remove_leftovers(parent: Path) -> None:
    """Remove temporary folders and files in `parent` whose processes have ended."""
    for entry in list(os.scandir(parent)):
        if entry.name.startswith(_TEMPORARY):
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    flock(descriptor, LOCK_EX | LOCK_NB)
                    _remove(entry.path)
                finally:
                    os.close(descriptor)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def _make_private(folder: Path) -> None:
    """Set private modes on everything in `folder`, with the rights that owners need whatever the umask was."""
    for here, folders, files in os.walk(folder):
        for name in folders:
            path = os.path.join(here, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
        for name in files:
            path = os.path.join(here, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                os.chmod(path, 0o700 if mode & 0o111 else 0o600)
