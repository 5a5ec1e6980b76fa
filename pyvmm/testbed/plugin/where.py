"""Where guests run: on the local KVM, in the emulated host, or nowhere."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import pytest

from pyvmm.host.inside import inside


@dataclass(frozen=True, slots=True)
class Where:
    """`missing` says why guests can run nowhere; empty if they can."""

    emulated: bool
    missing: str = ""


_where = pytest.StashKey[Where]()


def find_where(config: pytest.Config) -> Where:
    """Return where guests run, by --pyvmm-host and the probe of the local KVM."""
    if _where not in config.stash:
        config.stash[_where] = _find(config.getoption("pyvmm_host"))
    return config.stash[_where]


def _find(asked: str) -> Where:
    if inside():
        return Where(emulated=False)
    reason = "--pyvmm-host emulated"
    if asked != "emulated":
        from pyvmm.launch.probe import probe

        found = probe()
        if found.usable:
            return Where(emulated=False)
        reason = found.reason
        if asked == "local":
            return Where(False, f"the local KVM does not run Linux: {reason} (`pyvmm doctor`)")
    from pyvmm.host.qemu import PROGRAM

    if shutil.which(PROGRAM) is None:
        return Where(True, f"{PROGRAM} is not installed, and the local KVM is not used: {reason} (`pyvmm doctor`)")
    return Where(emulated=True)


def where_they_run(config: pytest.Config) -> str:
    """Return the same in words."""
    found = find_where(config)
    if found.missing:
        return f"which can run nowhere: {found.missing}"
    return "in the emulated host" if found.emulated else "on the local KVM"


def required() -> bool:
    """Return whether a test that cannot run is a failure: a skip must not turn CI green."""
    return os.environ.get("CI") == "true" or os.environ.get("PYVMM_REQUIRE_BOOT") == "1"
