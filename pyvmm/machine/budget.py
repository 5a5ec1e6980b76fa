"""Several guests on one host's memory: who gets how much of a budget. Pure arithmetic, for `pyvmm balance`.

Memory is given in this order, until the budget is used up; within a stage by how much each lacks:

    1. everybody's minimum
    2. everybody's demand                  what programs need
    3. demand and buffer                   what they shall have (autosize.wanted)
    4. what they have beyond that          nobody shrinks unless somebody else needs it

What is left then stays free. A guest that has not reported yet counts as one that needs its boot size. A plan moves
memory in two steps: those who give first, those who get as far as it has come free, so that the sum of what guests
have and of what they were promised never passes the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyvmm.machine.autosize import Limits, wanted

MIB = 1 << 20
UNIT = MIB
"""Targets are multiples of it, rounded down, so that rounding never passes the budget."""

BAND_LEAST = 16 * MIB
BAND_PERCENT = 2
"""Smaller moves than these are not made."""


@dataclass(frozen=True, slots=True)
class Member:
    """One guest. Bytes; `boot` stands for the demand before there is a report. `target`: what it was last told, if it
    is not there yet, else None.
    """

    name: str
    current: int
    demand: int | None
    limits: Limits
    boot: int
    target: int | None = None

    @property
    def held(self) -> int:
        """What it has or may have any moment."""
        return max(self.current, self.target or 0)

    @property
    def band(self) -> int:
        return max(BAND_LEAST, self.current * BAND_PERCENT // 100)


def share(budget: int, members: Sequence[Member]) -> dict[str, int]:
    """What each shall have in the end. The sum is within the budget, if the minimums are."""
    given = {each.name: each.limits.minimum for each in members}
    for stage in (_demands, _wants, _holdings):
        _raise_to(given, stage(members), budget)
    least = {each.name: each.limits.minimum for each in members}
    targets = {name: max(size // UNIT * UNIT, least[name]) for name, size in given.items()}
    return _without_small_moves(budget, members, targets)


def _demands(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.boot if m.demand is None else m.demand) for m in members}


def _wants(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.boot) if m.demand is None else wanted(m.demand, m.limits) for m in members}


def _holdings(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.current) for m in members}


def _raise_to(given: dict[str, int], goals: Mapping[str, int], budget: int) -> None:
    """Raise `given` towards `goals` with what is left of the budget, each by the same part of what it lacks."""
    lacks = {name: max(0, goal - given[name]) for name, goal in goals.items()}
    total, left = sum(lacks.values()), budget - sum(given.values())
    if not total or left <= 0:
        return
    for name, lack in lacks.items():
        given[name] += lack if left >= total else left * lack // total


def _without_small_moves(budget: int, members: Sequence[Member], targets: dict[str, int]) -> dict[str, int]:
    """Leave out moves that are not worth making; first those upwards, which frees what the others may keep."""
    total = sum(targets.values())
    for each in members:
        more = targets[each.name] - each.current
        if 0 < more < each.band and each.current >= each.limits.minimum and targets[each.name] < each.limits.maximum:
            targets[each.name] = each.current
            total -= more
    for each in sorted(members, key=lambda m: m.current - targets[m.name]):
        less = each.current - targets[each.name]
        if 0 < less < each.band and each.current <= each.limits.maximum and total + less <= budget:
            targets[each.name] = each.current
            total += less
    return targets


def moves(budget: int, members: Iterable[Member], targets: Mapping[str, int]) -> dict[str, int]:
    """The targets to set now on the way to `targets`: all that shrink, and growth as far as there is room."""
    known = list(members)
    result: dict[str, int] = {}
    free = budget - sum(each.held for each in known)
    for each in known:
        goal = targets[each.name]
        if goal < each.held and goal != each.target:
            result[each.name] = goal
    for each in sorted(known, key=_pressure, reverse=True):
        more = targets[each.name] - each.held
        if more <= 0 or free <= 0:
            continue
        step = min(more, free)
        if step < more:
            step = step // UNIT * UNIT
            if step < each.band:
                continue  # wait until more has come free
        result[each.name] = each.held + step
        free -= step
    return result


def _pressure(member: Member) -> float:
    return 1.0 if member.demand is None else member.demand / max(member.current, 1)
