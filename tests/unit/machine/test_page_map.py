"""Owners of pages as spans."""

from __future__ import annotations

import itertools

from pyvmm.devices.balloon.ranges import PageRanges
from pyvmm.machine.page_map import Span, _coarse, _runs, _split
from pyvmm.memory import PAGE_SIZE

RAM = 1024 * PAGE_SIZE


def test_ranges_of_the_ledger_divide_a_region_without_gaps() -> None:
    layers = [("out", PageRanges([(10, 5), (1000, 100)])), ("undiscarded", PageRanges([(15, 1)]))]
    spans = list(_split(0, RAM, "ram", layers))
    assert [(each.start // PAGE_SIZE, each.end // PAGE_SIZE, each.owner) for each in spans] == [
        (0, 10, "ram"),
        (10, 15, "out"),
        (15, 16, "undiscarded"),
        (16, 1000, "ram"),
        (1000, 1024, "out"),
    ]


def test_a_region_that_is_wholly_out_is_one_span() -> None:
    assert list(_split(0, RAM, "ram", [("out", PageRanges([(0, 1024)]))])) == [Span(0, RAM, "out")]


def test_many_spans_become_pieces_that_say_who_has_most() -> None:
    spans = list(_split(0, RAM, "ram", [("out", PageRanges([(page, 1) for page in range(0, 1024, 4)]))]))
    coarse = _coarse(spans, 16)
    assert (coarse[0].start, coarse[-1].end) == (0, RAM)
    assert len(coarse) <= 17
    assert {(each.owner, each.detail) for each in coarse} == {("ram", "75%")}
    assert all(one.end == two.start for one, two in itertools.pairwise(coarse))


def test_pieces_do_not_join_regions_that_are_apart() -> None:
    spans = [Span(0, RAM, "ram"), Span(4 * RAM, 5 * RAM, "added")]
    assert [(each.start, each.end) for each in _coarse(spans, 2)] == [(0, RAM), (4 * RAM, 5 * RAM)]


def test_neighbouring_pages_become_one_span() -> None:
    pages = [PAGE_SIZE * n for n in (1, 2, 3, 7, 8, 5)]
    assert [(each.start // PAGE_SIZE, each.end // PAGE_SIZE) for each in _runs(pages, "gpadl", "")] == [
        (1, 4),
        (7, 9),
        (5, 6),
    ]
