"""Sets of pages against plain Python sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.balloon.ranges import CHUNK, PageRange, PageRanges, clipped

near_borders = st.integers(0, 6 * CHUNK)
ranges = st.lists(st.tuples(near_borders, st.integers(0, 2 * CHUNK + 3) | st.integers(0, 5)), max_size=12)


def pages_of(some: list[tuple[int, int]]) -> set[int]:
    return {page for start, count in some for page in range(start, start + count)}


def check(made: PageRanges, expected: set[int]) -> None:
    """Disjoint, sorted, merged, nothing empty; and the right pages."""
    found = list(made)
    for low, high in pairwise(found):
        assert low.end < high.start
    assert all(r.pages > 0 for r in found)
    assert pages_of(found) == expected  # type: ignore[arg-type]
    assert made.pages == len(expected)


@given(st.integers(0, 1 << 40), st.integers(0, 100), st.integers(1, 20))
def test_parts_of_a_range_are_its_pages_in_turn(start: int, pages: int, limit: int) -> None:
    parts = PageRange(start, pages).parts(limit)
    assert [page for each in parts for page in range(each.start, each.end)] == list(range(start, start + pages))
    assert all(each.pages <= limit for each in parts)


@given(ranges, ranges)
def test_union_counts_only_what_is_new(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    made = PageRanges(first)
    one, two = pages_of(first), pages_of(second)
    check(made, one)
    assert made.copy().update(PageRanges(second)) == len(two - one)
    assert made.insert(second) == len(two - one)
    check(made, one | two)
    assert made == PageRanges(first) | PageRanges(second)


@given(ranges, ranges)
def test_set_algebra(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    a, b = PageRanges(first), PageRanges(second)
    one, two = pages_of(first), pages_of(second)
    check(a & b, one & two)
    check(a - b, one - two)
    assert a.isdisjoint(b) == one.isdisjoint(two)
    assert (a == b) == (one == two)
    list(a)  # so that the order of keys is known, and has to be kept right
    assert a.subtract(b) == len(one & two)
    check(a, one - two)


@given(ranges, ranges, ranges, ranges)
def test_absorb_is_the_same_as_set_algebra(
    held: list[tuple[int, int]],
    sent: list[tuple[int, int]],
    ram: list[tuple[int, int]],
    besides: list[tuple[int, int]],
) -> None:
    made = PageRanges(held)
    list(made)
    result = made.absorb(PageRanges(sent), PageRanges(ram), PageRanges(besides))
    old, given, within, other = pages_of(held), pages_of(sent), pages_of(ram), pages_of(besides)
    new = (given & within) - old - other
    check(result.new, new)
    check(made, old | new)
    assert result.inside == len(given & within)


@given(ranges, st.integers(0, 4 * CHUNK))
def test_top_is_the_highest_pages(some: list[tuple[int, int]], count: int) -> None:
    made = PageRanges(some)
    expected = set(sorted(pages_of(some))[-count:] if count else [])
    check(made.top(count), expected)
    assert made.subtract(made.top(count)) == len(expected)
    check(made, pages_of(some) - expected)


def test_top_ends_early_where_ranges_get_many() -> None:
    made = PageRanges((2 * i, 1) for i in range(10 * CHUNK))
    assert made.top(made.pages, max_ranges=100).pages == CHUNK // 2


def test_many_single_pages_come_out_as_they_went_in() -> None:
    single = [PageRange(i * 3 + 1, 1) for i in range(5000)]
    assert list(PageRanges(reversed(single))) == single


def test_memory_is_bounded_however_fragmented() -> None:
    whole, alternating = PageRanges([(0, 1 << 22)]), PageRanges((2 * i, 1) for i in range(1 << 21))
    assert whole.size_bytes < 200_000
    assert alternating.size_bytes < (1 << 22) / 8 * 1.6, "more than 1.6 times a bitmap"


def test_membership() -> None:
    made = PageRanges([(CHUNK - 1, 2)])
    assert [page in made for page in (CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 1)] == [False, True, True, False]


@given(ranges, ranges)
def test_clipping_keeps_what_is_within(some: list[tuple[int, int]], ram: list[tuple[int, int]]) -> None:
    bounds = list(PageRanges(ram))
    inside, outside = clipped(some, bounds)
    check(PageRanges(inside), pages_of(some) & pages_of(ram))
    assert sum(r.pages for r in inside) == len(pages_of(some) & pages_of(ram))
    assert outside == len(pages_of(some) - pages_of(ram))


def test_clipping_survives_claims_of_all_address_space() -> None:
    claim = [(start << 24, (1 << 24) - 1) for start in range(510)] * 2
    inside, outside = clipped(claim, [PageRange(256, 1000)])
    assert inside == [PageRange(256, 1000)]
    assert outside == 510 * ((1 << 24) - 1) - 1000
