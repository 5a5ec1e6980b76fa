"""Fuzz targets: functions `target(data: bytes) -> None` that take arbitrary bytes and return, whatever they hold.

    from tests.fuzz.targets import TARGETS
    TARGETS["guest_ports_serial"](b"...")

A target turns bytes into what one boundary of pyvmm takes (port accesses, messages, a file) and plays it. What the
boundary may raise (GuestError, or ConfigError for a file) is caught inside; what leaves a target is a finding.
The same functions run seeded under pytest (`tests/fuzz/test_targets.py`) and coverage-guided under atheris.

Every module here named `guest_*` (what a guest reaches) or `file_*` (parsers) has a dictionary TARGETS; all of them
are gathered here. `Feed` turns the bytes into numbers and choices.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

Target = Callable[[bytes], None]


def _gather() -> dict[str, Target]:
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.startswith(("guest_", "file_")):
            for name, target in import_module(f"{__name__}.{path.stem}").TARGETS.items():
                assert name not in found, f"fuzz target {name} twice"
                found[name] = target
    return found


TARGETS: dict[str, Target] = _gather()
