"""The user's cache folder: where packages, kernels and images are kept, and how they get there whole or not at all.

`pyvmm.paths` says where it is and who may write there. Everything in it can be deleted at any time when nothing is
being built.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyvmm.errors import HostError
from pyvmm.paths import cache_folder, make_folder, new_folder, open_private
from pyvmm.paths import write_private as write_file

__all__ = ["cache_folder", "disk_errors", "locked", "new_folder", "write_file"]


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a HostError that says what was being done and the likely cause."""
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
    """Hold a lock in the cache, waiting for another process that builds the same. Freed when the process ends."""
    folder = cache_folder("locks")
    make_folder(folder)
    descriptor = open_private(folder / f"{name}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
