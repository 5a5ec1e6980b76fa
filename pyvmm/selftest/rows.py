"""The rows of the self-test's table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "failed", "skipped"]
Figures = dict[str, float | int | str]


class StepFailed(Exception):
    """A step did not do what it should; the text is the row's."""


class StepSkipped(Exception):
    """A step cannot be done here; the text says why."""


@dataclass(slots=True)
class Row:
    """The result of one step. `figures` are for programs; `trace` and `console` are kept for a failed step only."""

    group: str
    name: str
    status: Status = "ok"
    seconds: float = 0.0
    detail: str = ""
    figures: Figures = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What a step returns: text for the table, figures for the report."""

    detail: str
    figures: Figures = field(default_factory=dict)
