"""Child processes of this one, and a check that tests leave none behind."""

from __future__ import annotations

import gc
import subprocess
import time
from contextlib import suppress
from pathlib import Path

GRACE = 5.0
"""Seconds that a child has to end after its test: a loaded computer is slow."""


def child_processes() -> list[int]:
    """Return the ids of this process's children, ended ones too that nothing has waited for."""
    found: list[int] = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread has ended meanwhile
            found += map(int, tasks.read_text().split())
    return found


def survivors(before: set[int], grace: float = GRACE) -> list[str]:
    """Return the children that were not there `before` and do not end within `grace` seconds, as process id and
    command."""
    limit = time.monotonic() + grace
    while True:
        gc.collect()
        getattr(subprocess, "_cleanup", lambda: None)()  # waits for ended children whose Popen is gone
        left = [each for each in child_processes() if each not in before]
        if not left or time.monotonic() > limit:
            return [f"{each} ({_command(each)})" for each in left]
        time.sleep(0.05)


def _command(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "ended"
    return (words[:200] or "no command") + (", ended and not waited for" if state == "Z" else "")
