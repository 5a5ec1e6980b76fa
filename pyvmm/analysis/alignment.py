"""Alignment of two sequences: the stretches in which they are equal, and those between.

difflib finds the longest common stretches, in time quadratic in the lengths, and more where items repeat.
Its budget is limited; beyond that the n-th occurrence of an item in one sequence is paired with the n-th in the
other, as far as their order allows: n log n, and good wherever little was inserted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from difflib import SequenceMatcher

BUDGET = 1 << 23
"""Pairs of items that difflib may compare for one Aligner: one or two seconds."""

Stretch = tuple[bool, int, int, int, int]
"""A stretch: whether it is equal, then its first and end index in either sequence."""


class Aligner:
    """Aligns sequences, with one budget for all its calls."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._left = budget

    def stretches(self, a: Sequence[Hashable], b: Sequence[Hashable]) -> Iterator[Stretch]:
        """Return both sequences in full as stretches."""
        cost = len(a) * len(b)
        if cost <= self._left:
            self._left -= cost
            matcher = SequenceMatcher(None, a, b, autojunk=False)
            for kind, a1, a2, b1, b2 in matcher.get_opcodes():
                yield kind == "equal", a1, a2, b1, b2
        else:
            yield from _joined(_pairs(a, b), len(a), len(b))


def _pairs(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return positions of equal items, rising in both: the longest such chain of n-th occurrences."""
    where: dict[Hashable, list[int]] = defaultdict(list)
    for position, item in enumerate(b):
        where[item].append(position)
    seen: dict[Hashable, int] = defaultdict(int)
    candidates: list[tuple[int, int]] = []
    for position, item in enumerate(a):
        number = seen[item]
        seen[item] += 1
        if number < len(where.get(item, ())):
            candidates.append((position, where[item][number]))
    return _longest_increasing(candidates)


def _longest_increasing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest subsequence of `pairs` (rising in the first) that rises in the second; patience sorting."""
    tops: list[int] = []  # the smallest end of a chain of each length
    ends: list[int] = []  # the pair of each
    before: list[int] = []
    for number, (_, second) in enumerate(pairs):
        length = bisect_left(tops, second)
        before.append(ends[length - 1] if length else -1)
        tops[length : length + 1] = [second]
        ends[length : length + 1] = [number]
    made: list[tuple[int, int]] = []
    number = ends[-1] if ends else -1
    while number >= 0:
        made.append(pairs[number])
        number = before[number]
    return made[::-1]


def _joined(pairs: list[tuple[int, int]], a_size: int, b_size: int) -> Iterator[Stretch]:
    a_at = b_at = 0
    index = 0
    while index < len(pairs):
        first = pairs[index]
        count = 1
        while index + count < len(pairs) and pairs[index + count] == (first[0] + count, first[1] + count):
            count += 1
        if (a_at, b_at) != first:
            yield False, a_at, first[0], b_at, first[1]
        a_at, b_at = first[0] + count, first[1] + count
        yield True, first[0], a_at, first[1], b_at
        index += count
    if (a_at, b_at) != (a_size, b_size):
        yield False, a_at, a_size, b_at, b_size
