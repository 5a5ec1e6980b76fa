"""The sweeper: a child process that removes files when its parent has ended, in whatever way.

A confined machine may remove files in pyvmm's own folders only. To remove a monitor's socket elsewhere (`--qmp
~/vm.sock`) it would need the right to remove anything in that folder and below; a child that was forked before the
confinement keeps that right instead.

    machine ---- pipe ----> sweeper: waits for the end of the pipe, removes what is still the same file, ends
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def removed_at_the_end(paths: Sequence[Path]) -> Iterator[None]:
    """Remove `paths` when the block or the process ends. Forks: call it before guest memory and threads exist."""
    files = [(path, _identity(path)) for path in paths]
    if not files:
        yield
        return
    ending, ours = os.pipe()
    child = os.fork()
    if child == 0:
        _sweep(ending, files)
    os.close(ending)
    try:
        yield
    finally:
        os.close(ours)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _sweep(ending: int, files: Sequence[tuple[Path, tuple[int, int] | None]]) -> None:
    """The child: wait for the end of the pipe, remove the files, exit."""
    try:
        os.setsid()  # not for the terminal's signals, nor for those to the machine's process group
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(ending, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))  # the terminal, the registry's lock, the other end of the pipe
        os.read(0, 1)
        for path, identity in files:
            if identity is not None and _identity(path) == identity:
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        os._exit(0)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
