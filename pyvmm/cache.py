"""Operations on the user's cache folder: build locks between processes, disk errors, and pruning.

`pyvmm.paths` has the folder's place and atomic creation of files. Everything in it can be deleted at any time when
nothing is being built.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvmm.errors import HostError
from pyvmm.paths import cache_folder, make_folder, open_private, remove_leftovers


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a HostError that names the operation and the likely cause."""
    try:
        yield
    except OSError as error:
        where = cache_folder()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space left; free some, or set PYVMM_CACHE to a folder elsewhere (now {where})"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = f"{error.strerror} ({error.filename}); set PYVMM_CACHE to a folder you can write (now {where})"
        else:
            text = str(error)
        raise HostError(f"{doing}: {text}") from error


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock in the cache, waiting for another process's build of the same. Freed when the process ends."""
    folder = cache_folder("locks")
    make_folder(folder)
    descriptor = open_private(folder / f"{name}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def mark_used(path: Path) -> None:
    """Set a file's access time, which `prune` uses: some file systems do not record it."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def prune(folder: Path, seconds: float, limit: int, needed: Collection[Path]) -> list[Path]:
    """Remove entries of `folder` not used for `seconds`, and the longest unused beyond `limit` bytes, except those
    in `needed`. Returns the removed entries.
    """
    removed = []
    now = time.time()
    with suppress(OSError):
        remove_leftovers(folder)
        entries = [(_used(path.lstat()), path) for path in folder.iterdir() if path not in needed]
        for used, path in sorted(entries, reverse=True):
            if path.name.startswith("."):
                continue  # under construction
            limit -= sum(each.lstat().st_size for each in (path, *path.rglob("*")))
            if limit < 0 or now - used > seconds:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _used(found: os.stat_result) -> float:
    """Return the time of the last use. A folder's is its change time: its access time is that of the last listing."""
    return found.st_mtime if stat.S_ISDIR(found.st_mode) else max(found.st_atime, found.st_mtime)
