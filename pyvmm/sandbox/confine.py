"""Confinement of the VMM process: the files and system calls that it keeps, and a report of what is in force.

Call `confine` when everything is open and before any thread is started: Landlock rules and capabilities belong to a
thread and are inherited by the threads it starts, so a thread that runs already would stay unconfined.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyvmm.errors import ConfigError
from pyvmm.kvm.abi import Op
from pyvmm.qapi import SandboxInfo
from pyvmm.sandbox import capabilities, landlock, seccomp
from pyvmm.sandbox.capabilities import DAC_OVERRIDE, DAC_READ_SEARCH
from pyvmm.sandbox.landlock import Access

Mode = Literal["off", "on", "require"]

REQUESTS = (Op.RUN, *(op for op in Op if op is not Op.RUN), *seccomp.TERMINAL_REQUESTS.values())
"""The ioctls of a machine, the most frequent first."""

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_OWN_SIZE = "/proc/self/statm"

_FILTERS = tuple(seccomp.build(seccomp.ANY_PROCESS, REQUESTS, landlocked=each) for each in (False, True))
"""The seccomp filters, without Landlock and with it. Built at import, which the emulated host's preforked Python has
done already."""

_kept: list[int] = []
"""Descriptors of the rules' files (see Ruleset), open as long as the process runs."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """The restrictions that are in force."""

    mode: Mode
    landlock: int = 0  # its ABI; 0 if it is not there
    seccomp: bool = False
    no_new_privileges: bool = False
    capabilities: tuple[str, ...] | None = None  # those left; None: as they were
    missing: tuple[str, ...] = field(default=())

    def describe(self) -> SandboxInfo:
        """For `x-status`."""
        left = self.capabilities
        return {
            "mode": self.mode,
            "landlock-abi": self.landlock,
            "seccomp": self.seccomp,
            "no-new-privileges": self.no_new_privileges,
            "capabilities": "unchanged" if left is None else " ".join(left) or "none",
            "missing": list(self.missing),
        }


OFF = Confinement("off")


def missing() -> list[tuple[str, str]]:
    """What this kernel lacks for complete confinement: each missing feature, with how to get it."""
    found = []
    if not landlock.abi():
        why = "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= list"
        found.append(("Landlock", f"{why}; in a container, a seccomp profile that allows landlock_*"))
    if not seccomp.available():
        found.append(("seccomp", "Linux with CONFIG_SECCOMP_FILTER; in a container, a profile that allows seccomp"))
    return found


def check(mode: Mode) -> None:
    """Raise ConfigError if `mode` asks for more than this kernel has."""
    if mode == "require":
        for what, fix in missing():
            raise ConfigError(f"--sandbox require: this kernel has no {what}: needed is {fix}")


def confine(mode: Mode, removable: Iterable[Path] = ()) -> Confinement:
    """Confine this process irrevocably to open descriptors, to reading code, and to removing files in the folders
    `removable`. Applies what the kernel has; in mode `require` raises ConfigError if a part is missing.
    """
    if mode == "off":
        return OFF
    check(mode)
    folders = [*removable]
    time.localtime()  # reads the time zone's file, once
    capabilities.forbid_new_privileges()
    version = landlock.abi()
    keep: list[int] = []
    if version:
        with landlock.Ruleset(version) as rules:
            keep = _allow(rules, folders)
            rules.enforce()
            _kept.extend(rules.kept)
    capabilities.drop_all(keep)
    filtered = seccomp.available()
    if filtered:
        seccomp.install(seccomp.for_process(_FILTERS[version > 0], os.getpid()))
    lacking = [what for what, has in (("Landlock", version), ("seccomp", filtered)) if not has]
    if threads := threading.active_count() - 1:
        lacking.append(f"{threads} threads that ran before")
    return Confinement(
        mode,
        version,
        filtered,
        True,
        tuple(capabilities.NAMES[each] for each in keep),
        tuple(lacking),
    )


def code_places() -> list[str]:
    """The folders of Python, of all packages and of libraries: later imports and tracebacks read files there."""
    own = Path(__file__).parents[1]
    found = [os.path.dirname(os.__file__), str(Path(sys.base_prefix, "lib")), *_LIBRARIES]
    found += [each for each in sys.path if os.path.basename(each) in ("site-packages", "dist-packages")]
    found += [sys.pycache_prefix] if sys.pycache_prefix else []
    found.append(str(own))
    # Landlock grants what a link leads to: in a checkout pyvmm/devices and its sisters are links.
    found += [os.path.realpath(each) for each in own.iterdir() if each.is_symlink()]
    places = dict.fromkeys(found)
    return [each for each in places if not any(parent in places for parent in map(str, Path(each).parents))]


def _allow(rules: landlock.Ruleset, folders: Sequence[Path]) -> list[int]:
    """Add the rules. Returns the capabilities to keep: those without which root could not read its own code or remove
    its files, because they are in folders of another user.
    """
    code, keep = code_places(), set()
    wanted: list[tuple[str | Path, Access]] = [(place, Access.READ_FILE | Access.READ_DIR) for place in code]
    wanted += [(_OWN_SIZE, Access.READ_FILE), (os.devnull, Access.READ_FILE | Access.WRITE_FILE)]
    with capabilities.without(DAC_OVERRIDE, DAC_READ_SEARCH) as lifted:
        closed = {place: access for place, access in wanted if not rules.allow(place, access)}
        if lifted:
            if not all(os.access(each, os.R_OK | os.X_OK, effective_ids=True) for each in code if each not in closed):
                keep.add(DAC_READ_SEARCH)
            if not all(os.access(each, os.W_OK | os.X_OK, effective_ids=True) for each in folders):
                keep.add(DAC_OVERRIDE)
    for place, access in closed.items():  # it is not there, or may not be reached without
        if rules.allow(place, access):
            keep.add(DAC_READ_SEARCH)
    for folder in folders:
        rules.allow(folder, Access.REMOVE_FILE)
    return sorted(keep)
