"""Bookkeeping: what a guest says it let go of, and what is done about it."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.ledger import PLAIN_CLAIM_PAGES, Ledger
from pyvmm.devices.balloon.ranges import PageRange
from pyvmm.errors import HostError

BOOT = [PageRange(0, 1000), PageRange(2000, 1000)]


class Host:
    """Records discards, in pages; refuses those in `stuck`."""

    def __init__(self) -> None:
        self.discarded: list[tuple[int, int]] = []
        self.stuck: set[int] = set()

    def discard(self, gpa: int, size: int) -> None:
        assert gpa % 4096 == size % 4096 == 0
        if gpa >> 12 in self.stuck:
            raise HostError("madvise(4 KiB): Invalid argument")
        self.discarded.append((gpa >> 12, size >> 12))


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def ledger(host: Host) -> Ledger:
    return Ledger(BOOT, host.discard)


def test_neighbours_are_discarded_in_one_call_whatever_their_order(ledger: Ledger, host: Host) -> None:
    assert ledger.record_released([(12, 1), (10, 1), (11, 1), (20, 5)]).accepted == 8
    assert host.discarded == [(10, 3), (20, 5)]
    assert (ledger.actual_pages, ledger.current_pages) == (1992, 1992)


@pytest.mark.parametrize(
    ("ranges", "accepted", "refused"),
    [
        ([(2990, 20)], 10, (10, 0, 0)),  # runs out of RAM
        ([(1000, 1000)], 0, (1000, 0, 0)),  # the hole
        ([(1 << 39, 5)], 0, (5, 0, 0)),
        ([(5, 0), (3000, 0)], 0, (0, 0, 0)),
        ([(5, 10), (8, 2), (14, 2)], 11, (0, 0, 3)),  # overlap within the message
        ([(500, 10)], 0, (0, 10, 0)),  # out already
        ([(495, 10)], 5, (0, 5, 0)),
        ([(0, PLAIN_CLAIM_PAGES), (2990, 11)], 1500, (PLAIN_CLAIM_PAGES - 2000, 500, 11)),
        ([(0, PLAIN_CLAIM_PAGES)] * 2, 1500, (PLAIN_CLAIM_PAGES - 2000, 500, PLAIN_CLAIM_PAGES)),
    ],
)
def test_each_page_counts_once(
    ledger: Ledger, host: Host, ranges: list[tuple[int, int]], accepted: int, refused: tuple[int, int, int]
) -> None:
    ledger.record_released([(500, 500)])
    host.discarded.clear()
    result = ledger.record_released(ranges)
    assert result.accepted == accepted
    assert (result.outside, result.known, result.repeated) == refused
    assert sum(pages for _, pages in host.discarded) == accepted
    counters = ledger.counters
    assert (counters.outside, counters.known, counters.repeated) == refused


def test_claims_of_all_address_space_take_no_time(ledger: Ledger, host: Host) -> None:
    result = ledger.record_released([(start << 24, (1 << 24) - 1) for start in range(510)])
    assert result.accepted == 2000
    assert host.discarded == [(0, 1000), (2000, 1000)]


def test_what_the_host_cannot_discard_is_gone_for_the_guest_alone(ledger: Ledger, host: Host) -> None:
    host.stuck = {10}
    assert ledger.record_released([(10, 2), (20, 2)]).accepted == 4
    assert [list(s) for s in (ledger.removed_guest, ledger.removed_both)] == [[(10, 2)], [(20, 2)]]
    assert (ledger.current_pages, ledger.actual_pages) == (1996, 1998)
    assert ledger.record_released([(10, 2)]).known == 2, "not tried again while it is out"


def test_undiscarded_pages_go_back_first_then_the_highest(ledger: Ledger, host: Host) -> None:
    host.stuck = {10}
    ledger.record_released([(10, 2), (20, 2), (2100, 50)])
    assert ledger.choose(4, 100) == [(10, 2), (2148, 2)]
    assert ledger.removed_pages == 54, "choosing changes nothing"
    ledger.give_back([(10, 2), (2148, 2)])
    assert (ledger.removed_guest.pages, ledger.removed_both.pages) == (0, 50)


def test_reset_gives_the_guest_its_boot_memory(ledger: Ledger, host: Host) -> None:
    ledger.record_released([(10, 2)])
    ledger.reset()
    assert ledger.current_pages == ledger.actual_pages == 2000
    assert ledger.record_released([(10, 2)]).accepted == 2, "and it may be let go of again"


def test_giving_back_what_is_not_out_is_our_bug(ledger: Ledger) -> None:
    with pytest.raises(AssertionError):
        ledger.give_back([(10, 1)])


GRANULE = 512


@pytest.fixture
def huge(host: Host) -> Ledger:
    """RAM of huge pages, 512 pages each."""
    return Ledger([PageRange(0, 4 * GRANULE)], host.discard, granule=GRANULE)


def test_only_whole_huge_pages_are_discarded(huge: Ledger, host: Host) -> None:
    assert huge.record_released([(0, GRANULE), (GRANULE + 1, GRANULE)]).accepted == 2 * GRANULE
    assert host.discarded == [(0, GRANULE)]
    assert (huge.removed_both_pages, huge.removed_guest_pages) == (GRANULE, GRANULE)
    assert (huge.current_pages, huge.actual_pages) == (2 * GRANULE, 3 * GRANULE)


def test_a_huge_page_is_discarded_when_its_last_page_comes_out(huge: Ledger, host: Host) -> None:
    huge.record_released([(GRANULE, GRANULE - 1), (3 * GRANULE, 5)])
    assert host.discarded == []
    huge.record_released([(2 * GRANULE - 1, 1)])
    assert host.discarded == [(GRANULE, GRANULE)]
    assert (huge.removed_both_pages, huge.removed_guest_pages) == (GRANULE, 5)


def test_a_page_given_back_brings_its_whole_huge_page_back_to_the_host(huge: Ledger) -> None:
    huge.record_released([(0, 2 * GRANULE)])
    huge.give_back([(GRANULE + 3, 1)])
    assert (huge.removed_both_pages, huge.removed_guest_pages) == (GRANULE, GRANULE - 1)
    assert huge.choose(2, 10) == [(2 * GRANULE - 2, 2)], "what costs nothing goes first"


def test_a_huge_page_that_the_host_keeps_stays_with_it(huge: Ledger, host: Host) -> None:
    host.stuck = {0}
    huge.record_released([(0, GRANULE)])
    assert (huge.removed_both_pages, huge.removed_guest_pages, huge.counters.undiscarded) == (0, GRANULE, GRANULE)
