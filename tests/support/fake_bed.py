"""A test bed without a machine, for oracles that judge an answer alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeBed:
    """Has a machine whose attributes a test sets, and a loop that does nothing."""

    def __init__(self, **machine: Any) -> None:
        self.machine: Any = SimpleNamespace(**{"outcome": None, "state": "running", "resets": 0} | machine)
        self.loop: Any = SimpleNamespace(step=lambda seconds: None)
