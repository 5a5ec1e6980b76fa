"""Transition tables of state machines: which state may follow which, and when.

A machine checks each change against its table where tests run (`pyvmm.contain.strict`), so the table is what the
machine does; `docs/book/reference/state-machines.md` is drawn from it.

    TABLE = {Offered: {Opening: "OPEN", Rescinded: "device removed"}, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvmm import contain

Transitions = Mapping[Any, Mapping[Any, str]]
"""For each state (a class, or a member of an enumeration) the states that may follow, each with the reason."""


def check(table: Transitions, old: Any, new: Any) -> None:
    """Fail an assertion where tests run, if `new` may not follow `old`. A state may follow itself only if listed."""
    if contain.strict:
        assert new in table[old], f"{new} after {old} is not in the table of transitions"
