"""Discards in slices: what a turn of the loop does, what waits, and what becomes of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.balloon import discards
from pyvmm.devices.balloon.discards import PIECE_PAGES, RANGES_A_TURN
from pyvmm.devices.balloon.ledger import Ledger
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.errors import HostError

BOOT = 1 << 20  # pages: 4 GiB


class Host:
    """Takes pages back, and turns the loop when told."""

    def __init__(self, pages: int = BOOT, granule: int = 1) -> None:
        self.discarded: list[tuple[int, int]] = []
        self.stuck: set[int] = set()
        self.queue: list[Callable[[], object]] = []
        self.ledger = Ledger([PageRange(0, pages)], self._discard, granule=granule)
        self.ledger.turns.later = self.queue.append
        self.told = 0
        self.ledger.turns.progress = self._progress

    def _discard(self, gpa: int, size: int) -> None:
        if gpa >> 12 in self.stuck:
            raise HostError("madvise: Invalid argument")
        self.discarded.append((gpa >> 12, size >> 12))

    def _progress(self) -> None:
        self.told += 1

    def turn(self) -> int:
        """A turn of the loop; how many calls it made."""
        before = self.ledger.counters.discards
        due, self.queue[:] = list(self.queue), []
        for callback in due:
            callback()
        return self.ledger.counters.discards - before

    def turns(self) -> list[int]:
        counts = []
        while self.queue:
            counts.append(self.turn())
        return counts


def scattered(count: int, start: int = 0) -> list[tuple[int, int]]:
    return [(start + 2 * n, 1) for n in range(count)]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy test machine must not end turns early."""
    monkeypatch.setattr(discards, "SECONDS_A_TURN", 60.0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that needs the whole turn for one call."""
    monkeypatch.setattr(discards, "SECONDS_A_TURN", 0.0)


@pytest.fixture
def host() -> Host:
    return Host()


def test_an_ordinary_answer_is_discarded_at_once(host: Host) -> None:
    host.ledger.record_released([(n * 512, 512) for n in range(64)])
    assert host.discarded == [(0, PIECE_PAGES), (PIECE_PAGES, PIECE_PAGES)]
    assert (host.ledger.waiting_pages, host.ledger.actual_pages) == (0, BOOT - 64 * 512)
    assert host.turns() == [0] and host.told == 0


def test_a_turn_makes_no_more_calls_than_its_share_however_many_messages_come(host: Host) -> None:
    for n in range(8):
        host.ledger.record_released(scattered(510, n * 2048))
    assert host.ledger.counters.discards <= RANGES_A_TURN, "the first of them used the turn up"
    assert host.ledger.current_pages == BOOT - 8 * 510
    counts = host.turns()
    assert max(counts) <= RANGES_A_TURN
    assert host.ledger.counters.discards == 8 * 510
    assert (host.ledger.waiting_pages, host.ledger.actual_pages) == (0, BOOT - 8 * 510)
    assert host.told >= 8 * 510 // RANGES_A_TURN - 1


def test_a_turn_ends_in_time_on_a_slow_host(host: Host, slow: None) -> None:
    host.ledger.record_released(scattered(510))
    assert host.ledger.counters.discards == 1
    assert host.turn() == 1


def test_large_ranges_are_cut_into_pieces_and_spread(host: Host) -> None:
    host.ledger.record_released([(0, BOOT)])
    host.turns()
    assert max(pages for _, pages in host.discarded) == PIECE_PAGES
    assert sum(pages for _, pages in host.discarded) == BOOT


def test_what_waits_costs_the_host_until_it_is_discarded(host: Host) -> None:
    host.ledger.record_released(scattered(510))
    done = host.ledger.counters.discards
    assert host.ledger.waiting_pages == 510 - done
    assert host.ledger.actual_pages == BOOT - done
    assert (host.ledger.removed_both_pages, host.ledger.removed_guest_pages) == (done, 510 - done)


def test_a_page_given_back_while_it_waits_is_never_discarded(host: Host) -> None:
    host.ledger.record_released(scattered(510))
    waiting = [page for page, _ in scattered(510) if page in host.ledger.boot.waiting]
    host.ledger.give_back([(page, 1) for page in waiting[:100]])
    host.discarded.clear()
    host.turns()
    assert sorted(page for page, _ in host.discarded) == waiting[100:]


def test_a_huge_page_of_which_a_page_was_given_back_is_never_discarded(slow: None) -> None:
    host = Host(512 * 1024, granule=512)
    host.ledger.record_released([(n * 1024, 512) for n in range(500)])
    assert 2 * 1024 in host.ledger.boot.waiting
    host.ledger.give_back([(2 * 1024 + 7, 1)])
    host.discarded.clear()
    host.turns()
    assert (2 * 1024, 512) not in host.discarded
    assert (3 * 1024, 512) in host.discarded


def test_a_reset_forgets_what_waits(host: Host) -> None:
    host.ledger.record_released(scattered(510))
    host.ledger.reset()
    host.discarded.clear()
    host.turns()
    assert (host.discarded, host.ledger.actual_pages) == ([], BOOT)


def test_what_the_host_keeps_is_counted_as_such_in_a_later_turn_too(host: Host) -> None:
    host.stuck = {page for page, _ in scattered(510)}
    host.ledger.record_released(scattered(510))
    host.turns()
    assert (host.ledger.removed_guest_pages, host.ledger.waiting_pages) == (510, 0)
    assert host.ledger.counters.undiscarded == 510


def test_fragments_of_much_memory_wait_in_little(host: Host, slow: None) -> None:
    for start in range(0, BOOT, 1020):
        host.ledger.record_released(scattered(510, start))
    assert host.ledger.waiting_pages > BOOT // 2 - 1000
    assert host.ledger.boot.waiting.size_bytes < BOOT // 4, "two bits a page"


moves = st.lists(
    st.one_of(
        st.tuples(st.just("book"), st.integers(0, 3000), st.integers(1, 400)),
        st.tuples(st.just("back"), st.integers(1, 300), st.integers(1, 50)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(moves, st.sampled_from([1, 8]))
def test_only_pages_that_are_out_are_discarded(moves: list[tuple[str, int, int]], granule: int) -> None:
    host = Host(4096, granule)
    ledger = host.ledger
    for what, first, second in moves:
        match what:
            case "book":
                ledger.record_released([(first + 3 * n, 2) for n in range(second)])
            case "back":
                ledger.give_back(ledger.choose(first, second))
            case "turn":
                host.turn()
            case "reset":
                ledger.reset()
        out = {p for r in (*ledger.removed_guest, *ledger.removed_both) for p in range(r.start, r.end)}
        if what == "turn":
            assert all(set(range(start, start + count)) <= out for start, count in host.discarded)
        host.discarded.clear()
        waiting = {p for r in ledger.boot.waiting for p in range(r.start, r.end)}
        assert waiting <= {p for r in ledger.removed_both for p in range(r.start, r.end)}
        assert ledger.actual_pages == 4096 - ledger.removed_both.pages + len(waiting)
        assert ledger.current_pages == 4096 - len(out)
