"""Where our source handles something: file and line, found in the source itself.

What comes from the guest is handled by the `case` that names its structure or number; what goes to the guest was sent
by the innermost caller that is not part of the way there.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

import pyvmm

Place = tuple[str, int]
"""A file, relative to the package's folder, and a line."""

_ROOT: Final = Path(pyvmm.__file__).parent
_WAY: Final = (
    "pyvmm.step.",
    "pyvmm.tap",
    "pyvmm.loop",
    "pyvmm.contain",
    "pyvmm.guest_time",
    "pyvmm.vmbus.tapped",
    "pyvmm.vmbus.mailbox",
    "pyvmm.vmbus.channel",
    "pyvmm.vmbus.timers",
    "pyvmm.vmbus.bus",
    "pyvmm.hyperv.",
    "pyvmm.machine.hardware",
)
"""Modules on the way from a sender to the guest."""
_OUTSIDE: Final = ("pyvmm.launch.", "pyvmm.cli.", "pyvmm.machine.machine")
"""Modules that only run the loop: what they call has no sender of its own."""
_DEPTH: Final = 40


def caller() -> Place | None:
    """Return the line of our code that sends what crosses a tap now."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            break
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_OUTSIDE):
            return None
        if module.startswith("pyvmm.") and not module.startswith(_WAY):
            return _short(frame.f_code.co_filename), frame.f_lineno
        frame = frame.f_back
    return None


@cache
def case_of(module: str, name: str, after: str = "") -> Place | None:
    """Return the first `case` in a module that names a class or member, behind the function `after`; None if there
    is none.
    """
    begin = function_of(module, after) if after else None
    return _first(module, re.compile(rf"^\s*case\b.*\b{re.escape(name)}\b"), begin[1] if begin else 1)


@cache
def made_at(module: str, name: str) -> Place | None:
    """Return the first line of a module that makes an object of a class."""
    return _first(module, re.compile(rf"^\s.*\b{re.escape(name)}\("))


def method_of(cls: type, name: str) -> Place | None:
    """Return where the method `name` of a class begins."""
    method = getattr(cls, name, None)
    try:
        code = inspect.unwrap(method).__code__  # type: ignore[arg-type]
    except (AttributeError, ValueError):
        return None
    return _short(code.co_filename), code.co_firstlineno


@cache
def function_of(module: str, name: str) -> Place | None:
    """Return where the function or method `name` of a module begins."""
    return _first(module, re.compile(rf"^\s*def {re.escape(name)}\("))


def shown(place: Place | None) -> str:
    """Format a place as an editor takes it: `pyvmm/vmbus/server.py:140`."""
    return "" if place is None else f"{place[0]}:{place[1]}"


def _first(module: str, pattern: re.Pattern[str], line: int = 1) -> Place | None:
    try:
        source, _ = inspect.getsourcelines(importlib.import_module(module))
    except (ImportError, OSError):
        return None
    file = importlib.import_module(module).__file__ or ""
    for number, text in enumerate(source[line - 1 :], line):
        if pattern.search(text):
            return _short(file), number
    return None


def _short(file: str) -> str:
    """Return a file's path from the repository's or the wheel's folder on."""
    path = Path(file)
    for root in (_ROOT, _ROOT.resolve()):
        if path.is_relative_to(root):
            return str(Path("pyvmm") / path.relative_to(root))
    return str(Path(*path.parts[-3:]))
