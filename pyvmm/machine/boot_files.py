"""The files that a machine boots from, opened once.

A reset loads the kernel again: the one that the machine started with, as QEMU does, even if its path names another
file by then, or the sandbox forbids opening files.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.files import open_regular


class BootFiles:
    """Descriptors of kernel and initramfs by path."""

    def __init__(self) -> None:
        self._kept: dict[Path, int] = {}

    def keep(self, *paths: Path | None) -> None:
        """Open the files that can be opened; the loader reports errors of the others."""
        for path in paths:
            if path is not None:
                try:
                    os.close(self.open(path))
                except (ConfigError, OSError):
                    pass

    def open(self, path: Path) -> int:
        """Return a descriptor of the file that `path` named at the first call. Raises as `open_regular`."""
        if path not in self._kept:
            self._kept[path] = open_regular(path)
        return os.dup(self._kept[path])

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        while self._kept:
            os.close(self._kept.popitem()[1])
