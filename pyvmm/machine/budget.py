"""Divides a memory budget among several guests of one host. Pure arithmetic, for `pyvmm balance`.

Memory is allotted in this order, until the budget is used up; within a stage in proportion to what each guest lacks:

    1. each guest's minimum
    2. each guest's demand                 the memory its programs need
    3. demand and buffer                   the wanted size (autosize.wanted)
    4. current size beyond that            a guest shrinks only if another needs memory

The rest stays free. A guest that has not reported yet counts as one with a demand of its boot size. A plan moves
memory in two steps: first some guests shrink, then others grow as memory is freed, so that the sum of the guests'
sizes and pending growth never exceeds the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyvmm.machine.autosize import Limits, wanted

MIB = 1 << 20
UNIT = MIB
"""Unit of targets in bytes; they are rounded down, so that the sum never exceeds the budget."""

MIN_BAND = 16 * MIB
BAND_PERCENT = 2
"""Least change of a target, in bytes; smaller ones are not made."""


@dataclass(frozen=True, slots=True)
class Member:
    """One guest; sizes in bytes. `boot` stands for the demand before the first report. `target`: the last target set,
    until it is reached, then None.
    """

    name: str
    current: int
    demand: int | None
    limits: Limits
    boot: int
    target: int | None = None

    @property
    def held(self) -> int:
        """The memory counted against the budget: the current size, or a larger target that is not reached yet."""
        return max(self.current, self.target or 0)

    @property
    def band(self) -> int:
        return max(MIN_BAND, self.current * BAND_PERCENT // 100)


def share(budget: int, members: Sequence[Member]) -> dict[str, int]:
    """Return each guest's final size. The sum is within the budget, if the minimums are."""
    shares = {each.name: each.limits.minimum for each in members}
    for stage in (_demands, _wanted_sizes, _current_sizes):
        _raise_to(shares, stage(members), budget)
    minimums = {each.name: each.limits.minimum for each in members}
    targets = {name: max(size // UNIT * UNIT, minimums[name]) for name, size in shares.items()}
    return _without_small_moves(budget, members, targets)


def _demands(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.boot if m.demand is None else m.demand) for m in members}


def _wanted_sizes(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.boot) if m.demand is None else wanted(m.demand, m.limits) for m in members}


def _current_sizes(members: Sequence[Member]) -> dict[str, int]:
    return {m.name: m.limits.clamp(m.current) for m in members}


def _raise_to(shares: dict[str, int], goals: Mapping[str, int], budget: int) -> None:
    """Raise `shares` towards `goals` with the rest of the budget, in proportion to what each guest lacks."""
    lacks = {name: max(0, goal - shares[name]) for name, goal in goals.items()}
    total, left = sum(lacks.values()), budget - sum(shares.values())
    if not total or left <= 0:
        return
    for name, lack in lacks.items():
        shares[name] += lack if left >= total else left * lack // total


def _without_small_moves(budget: int, members: Sequence[Member], targets: dict[str, int]) -> dict[str, int]:
    """Drop changes below the band, growth first: the memory that this frees lets other guests keep theirs."""
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
    """Return the targets to set now on the way to `targets`: all that shrink, and growth as far as there is room."""
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
                continue  # wait until more memory is free
        result[each.name] = each.held + step
        free -= step
    return result


def _pressure(member: Member) -> float:
    return 1.0 if member.demand is None else member.demand / max(member.current, 1)
