from __future__ import annotations

import time
from random import Random

import pytest

from pyvmm.analysis.alignment import Aligner
from pyvmm.analysis.diff import LIMIT, compare
from pyvmm.analysis.entry import Entry


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("seed", range(30))
def test_stretches_cover_both_sequences_and_equal_ones_are_equal(budget: int, seed: int) -> None:
    random = Random(seed)
    a = random.choices("abcd", k=random.randrange(40))
    b = random.choices("abcd", k=random.randrange(40))
    a_at = b_at = 0
    for equal, a1, a2, b1, b2 in Aligner(budget).stretches(a, b):
        assert (a1, b1) == (a_at, b_at) and (a2 > a1 or b2 > b1)
        assert not equal or a[a1:a2] == b[b1:b2] != []
        a_at, b_at = a2, b2
    assert (a_at, b_at) == (len(a), len(b))


def test_one_insertion_is_found_without_a_budget_too() -> None:
    a = [f"item {number}" for number in range(100)]
    b = [*a[:50], "new", *a[50:]]
    assert list(Aligner(0).stretches(a, b)) == [
        (True, 0, 50, 0, 50),
        (False, 50, 50, 50, 51),
        (True, 50, 100, 51, 101),
    ]


@pytest.mark.parametrize("kinds", [1, 2, 100, 1 << 60])
def test_as_many_events_as_there_may_be_are_compared_in_seconds(kinds: int) -> None:
    """Before, more than three minutes for two kinds of event."""
    random = Random(kinds)
    a, b = ([Entry(0.0, "a.b", "", {"x": random.randrange(kinds)}) for _ in range(LIMIT)] for _ in range(2))
    began = time.monotonic()
    assert len(compare(a, b).steps) >= LIMIT
    assert time.monotonic() - began < 20
