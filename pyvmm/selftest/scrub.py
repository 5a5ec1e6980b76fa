"""Removes personal data from a report: the user's and the machine's name, and paths below home folders."""

from __future__ import annotations

import getpass
import os
import re
import socket
from pathlib import Path
from typing import Any

COMMON = frozenset(
    {"root", "user", "localhost", "localhost.localdomain", "debian", "ubuntu", "fedora", "kvm", "linux", "vm"}
)
"""Names that tell nothing, and are words of kernels and distributions."""

_HOMES = re.compile(r"(?:/home|/Users|/var/home)/[^/\s\"',:;()]+(?:/[^\s\"',:;()]*)?")


class Scrubber:
    """Replaces names and paths in text and in what JSON holds."""

    def __init__(self, *, names: list[str] | None = None, folders: list[str] | None = None) -> None:
        given = _names() if names is None else names
        kept = [name for name in given if len(name) > 1 and name.lower() not in COMMON]
        longest_first = sorted(set(kept), key=len, reverse=True)
        self._names = (
            re.compile(r"(?<![\w])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w])", re.IGNORECASE)
            if longest_first
            else None
        )
        places = _folders() if folders is None else folders
        paths = sorted({path.rstrip("/") for path in places if path.rstrip("/")}, key=len, reverse=True)
        self._folders = (
            re.compile("(?:" + "|".join(map(re.escape, paths)) + r")(?:/[^\s\"',:;()]*)?(?![\w])") if paths else None
        )

    def text(self, text: str) -> str:
        """Return `text` without personal data."""
        for pattern in (self._folders, _HOMES):
            if pattern is not None:
                text = pattern.sub("PATH", text)
        return text if self._names is None else self._names.sub("NAME", text)

    def value(self, value: Any) -> Any:
        """Return a copy of a JSON value with all strings scrubbed, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each) for each in value]
        return value


def _names() -> list[str]:
    """Return the names of the user and of this machine, with and without its domain."""
    names = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER", "HOSTNAME")]
    for call in (getpass.getuser, socket.gethostname, socket.getfqdn):
        try:
            names.append(call())
        except (OSError, KeyError, ImportError):
            continue
    return names + [name.partition(".")[0] for name in names if "." in name]


def _folders() -> list[str]:
    """Return the folders whose paths may name the user: home, cache, working folder, pyvmm's own."""
    from pyvmm.paths import cache_folder, runtime_folder

    found = [str(Path(__file__).parents[2]), os.getcwd(), os.path.expanduser("~")]
    for folder in (cache_folder, runtime_folder):
        try:
            found.append(str(folder()))
        except Exception:
            continue
    return [path for path in found if path != "/"]
