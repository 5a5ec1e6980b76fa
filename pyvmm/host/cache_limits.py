"""Limits of the emulated host's part of the cache: how much is kept, for how long, and what is removed first.

    host/boot-*     kernel and initramfs, for all checkouts        some 10 MiB each
    host/saved-*    saved hosts (`snapshot`)                       some 200 MiB each
    host/probe-*    verdicts on the local KVM

Age counts from the last use, which sets a folder's time. A folder in use is locked and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.files import FileError, load_object
from pyvmm.paths import cache_folder, remove_leftovers

SAVED_BYTES = 2 << 30
"""Maximum disk usage, in bytes, of all saved hosts: some ten. The least recently used are removed first."""

UNUSED_SECONDS = 30 * 24 * 3600.0
"""Seconds that anything is kept without being used."""

_EVERYTHING = ("boot-*", "saved-*", "probe-*", "kit-*", "snapshot-*", "base")  # the last three are of older versions


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock `folder` against removal and replacement, and record its use. Raises HostError if it is gone."""
    while True:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{folder}: {error.strerror}") from error
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(lock), folder.stat()):
                break  # else it was replaced while this process waited
        os.close(lock)
    try:
        with contextlib.suppress(OSError):
            os.utime(folder)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Lock `folder`, if it exists, for its replacement: wait until no process restores from it, and block others."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def tidy(*, keep: Path | None = None) -> list[Path]:
    """Remove folders past their limits, no longer usable, or left by killed processes; but not `keep`.

    Returns what was removed.
    """
    removed = []
    left = SAVED_BYTES - (disk_usage(keep) if keep is not None else 0)
    now = time.time()
    with contextlib.suppress(OSError):
        remove_leftovers(cache_folder("host"))
    for path in sorted(_kept(), key=_used, reverse=True):
        if path == keep:
            continue
        if path.name.startswith("saved-") and not _is_orphaned(path):
            left -= disk_usage(path)
            if left >= 0 and now - _used(path) <= UNUSED_SECONDS:
                continue
        elif not path.name.startswith("saved-") and now - _used(path) <= UNUSED_SECONDS:
            continue
        if remove(path):
            removed.append(path)
    return removed


def clear() -> list[Path]:
    """Remove all folders that no process uses. Returns what was removed."""
    with contextlib.suppress(OSError):
        remove_leftovers(cache_folder("host"))
    return [path for path in _kept() if remove(path)]


def disk_usage(path: Path) -> int:
    """Return the allocated bytes of a folder and its files: a saved host's memory is a sparse file."""
    total = 0
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):  # removed by another process
            total += each.lstat().st_blocks * 512
    return total


def _kept() -> list[Path]:
    folder = cache_folder("host")
    return [path for pattern in _EVERYTHING for path in folder.glob(pattern)]


def _used(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _is_orphaned(folder: Path) -> bool:
    """Return whether a saved host's interpreter, checkout or files are missing."""
    try:
        record = load_object(folder / "saved.json", {"python": str, "repository": str})
    except FileError:
        return True
    return not all(os.path.exists(path) for path in (record["python"], record["repository"], folder / "state"))


def remove(path: Path) -> bool:
    """Remove the folder unless a process uses it; return whether it is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
