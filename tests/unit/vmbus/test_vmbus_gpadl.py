"""GPADL assembly: what a guest may lend, and what is refused."""

from __future__ import annotations

import pytest

from pyvmm.errors import GuestMemoryError, GuestProtocolError
from pyvmm.memory import GuestMemory
from pyvmm.vmbus import gpadl as module
from pyvmm.vmbus.gpadl import Gpadl, GpadlRefused, GpadlTable, GpaRange
from pyvmm.vmbus.protocol import GpadlBody, GpadlHeader, Status

MIB = 1 << 20


@pytest.fixture
def table() -> GpadlTable:
    return GpadlTable(GuestMemory.flat(MIB))


def header(
    *words: int, ranges: int = 1, total: int | None = None, gpadl: int = 1, relid: int = 1, odd: int = 0
) -> GpadlHeader:
    made = GpadlHeader(relid, gpadl, 8 * (len(words) if total is None else total) + odd, ranges)
    made.words = words
    return made


def body(gpadl: int, words: tuple[int, ...]) -> GpadlBody:
    made = GpadlBody(0, gpadl)
    made.words = words
    return made


def test_list_in_one_message_is_complete_at_once(table: GpadlTable) -> None:
    made = table.begin(header(0x2000, 5, 7))
    assert made is not None
    assert made.ranges == [GpaRange(0x2000, 0, [0x5000, 0x7000])]
    assert made.ring_pages() == [0x5000, 0x7000]


def test_bodies_complete_a_list(table: GpadlTable) -> None:
    assert table.begin(header(0x4000, 1, total=5)) is None
    assert table.extend(body(1, (2, 3))) is None
    made = table.extend(body(1, (9,)))
    assert made is not None
    assert made.ranges[0].gpas() == [(0x1000, 0x3000), (0x9000, 0x1000)]


def test_several_ranges_with_offsets(table: GpadlTable) -> None:
    made = table.begin(header(100 << 32 | 50, 3, 4000 << 32 | 200, 8, 6, ranges=2))
    assert made is not None
    assert [r.gpas() for r in made.ranges] == [[(0x3000 + 100, 50)], [(0x8000 + 4000, 96), (0x6000, 104)]]


def test_bytes_of_a_range_are_read_across_pages() -> None:
    memory = GuestMemory.flat(MIB)
    memory.write(0x8FFC, b"abcd")
    memory.write(0x6000, b"efgh")
    gpadl = Gpadl(1, 1, [GpaRange(8, 0xFFC, [0x8000, 0x6000])])
    assert gpadl.read(memory) == b"abcdefgh"
    assert b"".join(gpadl.views(memory)) == b"abcdefgh"


def test_page_that_went_away_is_noticed_when_it_is_used() -> None:
    memory = GuestMemory.flat(MIB)
    gpadl = Gpadl(1, 1, [GpaRange(4096, 0, [0x8000])])
    memory.remove(next(iter(memory)))
    with pytest.raises(GuestMemoryError):
        gpadl.read(memory)


@pytest.mark.parametrize(
    "message",
    [
        header(0x1000, 256),  # the first page past RAM
        header(0x1000, 1 << 52),
        header(0x1000, (1 << 64) - 1),
        header(0, 1),  # no bytes
        header(0x1000 << 32 | 8, 1),  # offset outside the page
        header(0x3000, 1, 2),  # too few frames for the bytes
        header(0x1000, 1, 2),  # too many
        header(0x1000, 1, ranges=2, total=4),  # second range missing
        header(0x1000, 1, ranges=0),
        header(0x1000, 1, 2, total=2),  # more words than announced
        header(total=2),  # none at all
        header(0x1000, 1, ranges=0xFFFF),
        header(0x1000, 1, odd=1),  # not whole words
    ],
)
def test_list_that_makes_no_sense_is_refused_and_forgotten(table: GpadlTable, message: GpadlHeader) -> None:
    with pytest.raises(GpadlRefused) as refused:
        if table.begin(message) is None:
            table.extend(body(1, tuple(range(2))))
    assert refused.value.status == Status.INVALID_PARAMETER
    assert table.begin(header(0x1000, 1)) is not None


def test_body_past_the_end_is_refused(table: GpadlTable) -> None:
    table.begin(header(0x2000, 1, total=3))
    with pytest.raises(GpadlRefused):
        table.extend(body(1, (2, 3)))


def test_body_of_an_unknown_or_complete_list_is_refused(table: GpadlTable) -> None:
    table.begin(header(0x1000, 1))
    for gpadl in (1, 2):
        with pytest.raises(GuestProtocolError):
            table.extend(body(gpadl, (1,)))


def test_id_in_use_is_refused_while_coming_and_when_complete(table: GpadlTable) -> None:
    table.begin(header(0x1000, 1, gpadl=1))
    table.begin(header(0x2000, 1, gpadl=2, total=3))
    for gpadl in (1, 2):
        with pytest.raises(GpadlRefused, match="exists"):
            table.begin(header(0x1000, 1, gpadl=gpadl))


def test_number_of_lists_is_bounded(table: GpadlTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GPADL_LIMIT", 2)
    table.begin(header(0x1000, 1, gpadl=1))
    table.begin(header(0x2000, 1, gpadl=2, total=3))
    with pytest.raises(GpadlRefused) as refused:
        table.begin(header(0x1000, 1, gpadl=3))
    assert refused.value.status == Status.QUOTA_EXCEEDED


def test_number_of_pages_is_bounded_from_the_announcement_on(
    table: GpadlTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GPADL_PAGES_LIMIT", 10)
    table.begin(header(0x8000, 1, gpadl=1, total=9))
    with pytest.raises(GpadlRefused, match="established"):
        table.begin(header(0x1000, 1, gpadl=2))


def test_list_belongs_to_its_channel(table: GpadlTable) -> None:
    table.begin(header(0x1000, 1, relid=3))
    assert table.get(1, 3).relid == 3
    with pytest.raises(GuestProtocolError):
        table.get(1, 4)
    table.forget(3)
    with pytest.raises(GuestProtocolError):
        table.get(1, 3)


@pytest.mark.parametrize(
    "ranges", [[GpaRange(4096, 8, [0, 0x1000])], [GpaRange(100, 0, [0])], [GpaRange(4096, 0, [0])] * 2]
)
def test_ring_needs_one_range_of_whole_pages(ranges: list[GpaRange]) -> None:
    with pytest.raises(GuestProtocolError):
        Gpadl(1, 1, ranges).ring_pages()


def test_what_was_taken_back_can_be_lent_again(table: GpadlTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GPADL_PAGES_LIMIT", 3)
    for _ in range(10):
        made = table.begin(header(0x2000, 1, 2))
        assert made is not None
        table.remove(made)
        assert table.begin(header(0x2000, 1, total=3, relid=2)) is None
        table.forget(2)
        with pytest.raises(GpadlRefused):
            table.begin(header(0x1000, 256))
        table.begin(header(0x2000, 1, total=3))
        table.clear()


def test_a_page_is_checked_when_its_message_comes(table: GpadlTable) -> None:
    """Not all of them at the last, which would make one turn of the loop as long as all others together."""
    table.begin(header(0x4000, 1, total=5))
    with pytest.raises(GpadlRefused, match="0x1000000"):
        table.extend(body(1, (0x1000,)))
