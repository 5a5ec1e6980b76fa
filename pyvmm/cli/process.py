"""Whether this process is pyvmm's own, started for one command, or a program that calls its command line."""

from __future__ import annotations

_own = False


def take() -> None:
    """The process is pyvmm's own."""
    global _own
    _own = True


def is_own() -> bool:
    """Whether it may be changed for good: confined, for instance."""
    return _own
