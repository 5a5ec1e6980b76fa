"""The user's cache folder: where packages, kernels and images are kept, and how they get there whole or not at all.

`PYVMM_CACHE` names it, else it is `pyvmm` in XDG_CACHE_HOME or ~/.cache. Everything in it can be deleted at any time
when nothing is being built.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm.errors import HostError


def cache_folder(*parts: str) -> Path:
    """A folder in the cache, not necessarily there yet."""
    base = os.environ.get("PYVMM_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyvmm")
    return Path(base, *parts)


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
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` at the end, or vanishes if the block fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / "was")
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_file(target: Path, data: bytes) -> None:
    """Write a file in one piece: whoever reads `target` finds the old contents or the new, never half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
