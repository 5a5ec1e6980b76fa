"""The balloon's behaviour, played against a guest that does as Linux does, and against worse ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.balloon.growth import NEEDS_HOT_ADD
from pyvmm.devices.balloon.plan import ResizeOutcome, linux_floor, lowest_reachable
from pyvmm.devices.balloon.state_machine import Changed
from pyvmm.devices.balloon.states import (
    AwaitCaps,
    AwaitVersion,
    BalloonPosting,
    BalloonWaiting,
    Closed,
    Idle,
    UnballoonPosting,
    UnballoonWaiting,
)
from pyvmm.errors import ConfigError, GuestProtocolError
from tests.support.balloon_guest import BalloonGuest
from tests.support.balloon_harness import BOOT, PAGE, PIECE, BalloonHarness


def test_negotiation_ends_idle_with_nothing_asked() -> None:
    play = BalloonHarness()
    assert isinstance(play.machine.state, Closed)
    play.machine.opened()
    assert isinstance(play.machine.state, AwaitVersion)
    play.send_to_host(play.guest.version(0x20000))
    assert isinstance(play.machine.state, AwaitCaps)
    play.run()
    assert isinstance(play.machine.state, Idle)
    assert play.guest.caps_accepted
    assert [type(m) for m in play.sent] == [p.VersionResponse, p.CapabilitiesResponse]
    assert str(play.machine.version) == "2.0"


def test_answers_to_negotiation_carry_the_guests_id() -> None:
    play = BalloonHarness().boot()
    assert [m.trans_id for m in play.sent] == [1001, 1002]


@pytest.mark.parametrize(("available", "committed"), [(1 << 51, 0), (0, 1 << 51), ((1 << 64) - 1, (1 << 64) - 1)])
def test_a_status_report_beyond_all_memory_is_refused(available: int, committed: int) -> None:
    play = BalloonHarness().boot()
    with pytest.raises(GuestProtocolError, match="status report"):
        play.send_to_host(play.guest.status(available, committed))
    assert play.machine.status is None
    play.send_to_host(play.guest.status((1 << 51) - 1, 5))
    assert play.machine.status is not None


def test_an_unknown_version_is_refused_and_the_next_one_taken() -> None:
    play = BalloonHarness(newest_version=p.WIN8)
    play.machine.opened()
    for version in (0x30000, 0x20000, 0x10000):
        play.send_to_host(play.guest.version(version))
    assert [m.is_accepted for m in play.host_turn() if isinstance(m, p.VersionResponse)] == [0, 0, 1]
    assert play.machine.version == p.WIN8


def test_the_guest_gets_its_maximum_if_configured() -> None:
    play = BalloonHarness(send_info=True).boot()
    assert isinstance(play.sent[-1], p.Info)
    assert play.sent[-1].pages == BOOT


def test_a_target_takes_effect_as_soon_as_negotiation_is_done() -> None:
    play = BalloonHarness()
    plan = play.machine.set_target(BOOT // 2 * PAGE)
    assert "not loaded yet" in plan.reason
    play.boot()
    assert play.machine.ledger.current_pages == BOOT // 2
    assert play.outcome().reached


@pytest.mark.parametrize("out", [1, 511, 512, PIECE, PIECE + 1, 3 * PIECE - 5])
def test_out_and_back_to_the_page(out: int) -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - out) * PAGE)
    play.run()
    assert len(play.guest.out) == play.machine.ledger.removed_both.pages == out
    assert sum(pages for _, pages in play.discarded) == out
    assert all(pages <= PIECE for pages in play.requests())
    play.machine.set_target(BOOT * PAGE)
    play.run()
    assert (len(play.guest.out), play.machine.ledger.current_pages) == (0, BOOT)
    assert isinstance(play.machine.state, Idle)


def test_fragmented_memory_comes_back_508_ranges_a_message() -> None:
    guest = BalloonGuest(BOOT, unit=1)
    guest.free -= set(range(1, BOOT, 2))
    play = BalloonHarness(guest).boot()
    play.machine.set_target((BOOT - PIECE) * PAGE)
    play.run().sent.clear()
    play.machine.set_target(BOOT * PAGE)
    play.run()
    sent = [m for m in play.sent if isinstance(m, p.UnballoonRequest)]
    assert [len(m.ranges) for m in sent] == [508, 508, 508, 508, 16]
    assert [m.more for m in sent] == [True] * 4 + [False]
    assert guest.answered_unballoons == 1


def test_a_small_receiving_ring_gets_shorter_messages() -> None:
    guest = BalloonGuest(BOOT, unit=1)
    guest.free -= set(range(1, BOOT, 2))
    play = BalloonHarness(guest)
    play.machine.opened(message_limit=16 + 8 * 300)
    play.send_to_host(guest.version())
    play.run()
    play.machine.set_target((BOOT - PIECE) * PAGE)
    play.run().sent.clear()
    play.machine.set_target(BOOT * PAGE)
    play.run()
    sent = [m for m in play.sent if isinstance(m, p.UnballoonRequest)]
    assert [len(m.ranges) for m in sent] == [300] * 6 + [248]
    assert guest.out == set()


def test_a_new_target_takes_over_after_the_outstanding_answer() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target(BOOT // 4 * PAGE)
    (request,) = play.host_turn()
    play.machine.set_target((BOOT - 10) * PAGE)
    assert play.host_turn() == [], "one request at a time"
    for answer in play.guest.answers(request):
        play.send_to_host(answer)
    play.run()
    assert play.requests() == [PIECE]
    assert play.machine.ledger.current_pages == BOOT - 10


def test_a_short_answer_to_an_older_target_does_not_end_the_new_one() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, floor=BOOT - 100)).boot()
    play.machine.set_target(PAGE * PIECE)
    (request,) = play.host_turn()
    play.machine.set_target((BOOT - 50) * PAGE)
    for answer in play.guest.answers(request):
        play.send_to_host(answer)
    play.run()
    assert (play.machine.ledger.current_pages, play.outcome().reason) == (BOOT - 50, "")


def test_a_new_target_cuts_an_unballoon_short() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, unit=1)).boot()
    play.guest.free -= set(range(1, BOOT, 2))
    play.machine.set_target((BOOT - PIECE) * PAGE)
    play.run()
    play.machine.set_target(BOOT * PAGE)
    (first,) = play.host_turn(limit=1)
    assert isinstance(first, p.UnballoonRequest)
    assert first.more
    list(play.guest.answers(first))
    play.machine.set_target((BOOT - PIECE) * PAGE)
    (last,) = play.host_turn()
    assert last == p.UnballoonRequest(last.trans_id, False, [])
    for answer in play.guest.answers(last):
        play.send_to_host(answer)
    play.run()
    assert play.machine.ledger.current_pages == BOOT - PIECE
    assert play.machine.ledger.removed_both.pages == len(play.guest.out)


def test_the_guests_floor_ends_the_attempt_with_a_reason() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, floor=BOOT - 3000)).boot()
    play.machine.set_target(PAGE)
    play.run().wait(1)
    assert play.machine.ledger.current_pages == BOOT - 3000
    assert "gave nothing: it keeps the rest (its floor)" in play.outcome().reason
    assert play.outcome().actual == (BOOT - 3000) * PAGE
    assert play.requests() == [PIECE, PIECE, PIECE]


def test_more_than_the_boot_size_needs_hot_add() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.run()
    plan = play.machine.set_target(2 * BOOT * PAGE)
    assert (plan.will_reach, plan.reason) == (BOOT * PAGE, NEEDS_HOT_ADD)
    play.run()
    assert (play.machine.ledger.current_pages, play.outcome().reason) == (BOOT, NEEDS_HOT_ADD)


def test_a_guest_that_cannot_balloon_is_not_asked() -> None:
    play = BalloonHarness()
    play.machine.opened()
    play.send_to_host(play.guest.version())
    play.send_to_host(play.guest.caps(0))
    plan = play.machine.set_target(PAGE)
    play.host_turn()
    assert plan.will_reach == BOOT * PAGE
    assert "cannot balloon" in plan.reason
    assert play.requests() == []


@pytest.mark.parametrize("size", [0, -1, 4095])
def test_no_memory_at_all_is_not_a_target(size: int) -> None:
    with pytest.raises(ConfigError):
        BalloonHarness().machine.set_target(size)


def test_silence_ends_the_attempt_and_the_device_is_usable_again() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.host_turn()
    play.now += 29
    play.machine.check_time()
    assert isinstance(play.machine.state, BalloonWaiting)
    play.now += 1
    play.machine.check_time()
    assert isinstance(play.machine.state, Idle)
    assert "30 s" in play.outcome().reason
    play.machine.set_target((BOOT - 100) * PAGE)
    play.run()
    assert play.outcome().reached


def test_pages_are_progress_and_empty_answers_are_not() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.host_turn()
    play.now += 20
    play.send_to_host(p.BalloonResponse(1, True, [(5, 1)]).build())
    play.now += 20
    play.machine.check_time()
    assert isinstance(play.machine.state, BalloonWaiting)
    play.send_to_host(p.BalloonResponse(1, True, [(5, 1)]).build())
    play.now += 10
    play.machine.check_time()
    assert isinstance(play.machine.state, Idle)


def test_an_answer_after_the_time_limit_is_booked_all_the_same() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    (request,) = play.host_turn()
    play.now += 31
    play.machine.check_time()
    for answer in play.guest.answers(request):
        play.send_to_host(answer)
    assert play.machine.ledger.removed_both.pages == len(play.guest.out) == 100
    with pytest.raises(GuestProtocolError):
        play.send_to_host(p.BalloonResponse(1, False, [(7, 1)]).build())


def test_a_guest_that_does_not_read_its_ring_times_out_too() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.now += 31
    play.machine.check_time()
    assert isinstance(play.machine.state, Idle)
    play.machine.set_target((BOOT - 100) * PAGE)
    assert isinstance(play.machine.state, BalloonPosting)


def test_too_many_pages_are_booked_and_the_surplus_goes_back() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.host_turn()
    play.guest.free -= set(range(500))
    play.guest.out |= set(range(500))
    play.send_to_host(p.BalloonResponse(1, False, [(0, 500)]).build())
    play.run()
    assert len(play.guest.out) == play.machine.ledger.removed_both.pages == 100
    assert play.outcome().reached


def test_status_reports_are_taken_in_every_state() -> None:
    play = BalloonHarness()
    play.machine.opened()
    reports: list[Callable[[], object]] = [
        lambda: play.send_to_host(play.guest.version()),
        lambda: play.run(),
        lambda: play.machine.set_target((BOOT - 100) * PAGE),
        lambda: play.host_turn(),
        lambda: play.send_to_host(p.BalloonResponse(1, False, [(0, 100)]).build()),
        lambda: play.machine.set_target(BOOT * PAGE),
        lambda: play.host_turn(),
    ]
    for number, step in enumerate(reports):
        step()
        play.send_to_host(play.guest.status(number))
        assert play.machine.status is not None
        assert play.machine.status.available_pages == number
    assert isinstance(play.machine.state, UnballoonWaiting)


@pytest.mark.parametrize(
    "payload",
    [
        p.VersionRequest(1, 16, 1, 0x20000, 0).build(),
        p.CapabilitiesReport(3, 32, 1, 1, 0, 0).build(),
        p.BalloonResponse(1, False, [(0, 1)]).build(),
        p.UnballoonResponse(9, 8, 1).build(),
        p.HotAddResponse(11, 16, 1, 1, 1).build(),
    ],
)
def test_unsolicited_messages_are_refused_and_change_nothing(payload: bytes) -> None:
    play = BalloonHarness().boot()
    with pytest.raises(GuestProtocolError):
        play.send_to_host(payload)
    assert isinstance(play.machine.state, Idle)
    assert (play.discarded, play.machine.ledger.removed_pages) == ([], 0)


def test_pages_stay_out_while_the_driver_is_unbound_and_come_back_after() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.run()
    play.machine.closed()
    assert (play.machine.ledger.removed_pages, play.machine.status) == (100, None)
    play.machine.set_target(BOOT * PAGE)
    play.boot()
    assert (play.guest.out, play.machine.ledger.removed_pages) == (set(), 0)


def test_closing_amid_an_unballoon_never_gives_a_page_back_twice() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, unit=1)).boot()
    play.guest.free -= set(range(1, BOOT, 2))
    play.machine.set_target((BOOT - PIECE) * PAGE)
    play.run()
    play.machine.set_target(BOOT * PAGE)
    for message in play.host_turn(limit=2):
        list(play.guest.answers(message))
    assert isinstance(play.machine.state, UnballoonPosting)
    play.machine.closed()
    assert play.machine.ledger.removed_pages == PIECE - 2 * 508
    play.boot()
    assert play.guest.out == set()


@pytest.mark.parametrize("keep", [True, False])
def test_a_machine_reset_is_boot_size_and_the_target_again(keep: bool) -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - 100) * PAGE)
    play.run()
    play.machine.closed()
    play.machine.power_on(keep_target=keep)
    assert play.machine.ledger.actual_pages == BOOT
    play.guest = BalloonGuest(BOOT)
    play.boot()
    assert len(play.guest.out) == (100 if keep else 0)


def test_changes_and_the_outcome_are_reported_in_order() -> None:
    play = BalloonHarness().boot()
    play.machine.set_target((BOOT - PIECE - 512) * PAGE)
    play.run()
    actual = [BOOT - PIECE, BOOT - PIECE - 512]
    assert list(play.machine.notifications) == [
        *[Changed(pages * PAGE) for pages in actual],
        ResizeOutcome(actual[-1] * PAGE, actual[-1] * PAGE),
    ]


def test_the_plan_knows_linux_floor_from_the_last_report() -> None:
    play = BalloonHarness().boot()
    play.send_to_host(play.guest.status(available=BOOT - 4000))
    plan = play.machine.set_target(PAGE)
    lowest = lowest_reachable(BOOT, BOOT - 4000)
    assert (plan.target, plan.will_reach) == (PAGE, lowest * PAGE)
    assert "floor" in plan.reason


def test_the_plan_counts_what_came_and_went_since_the_report() -> None:
    """A report is 45 s old at worst: `balloon 256M` right after `balloon 512M` must not take its figure as it is."""
    play = BalloonHarness().boot()
    available = BOOT - 2000
    play.send_to_host(play.guest.status(available=available))
    lowest = lowest_reachable(BOOT, available)
    for size in (BOOT - 1000, BOOT):
        play.machine.set_target(size * PAGE)
        play.run()
        assert play.machine.set_target(PAGE).will_reach == lowest * PAGE


@pytest.mark.parametrize(("mib", "floor"), [(64, 40), (127, 71), (128, 72), (512, 168), (2048, 360), (16384, 1000)])
def test_linux_floor_in_mib(mib: int, floor: int) -> None:
    assert linux_floor(mib << 8) == floor << 8


@given(st.integers(0, 1 << 24), st.integers(0, 1 << 24))
def test_the_lowest_reachable_size_respects_the_floor_and_one_less_does_not(current: int, available: int) -> None:
    available = min(current, available)
    lowest = lowest_reachable(current, available)
    assert 0 <= lowest <= current
    if lowest < current:
        assert available - (current - lowest) >= linux_floor(lowest)


claims = st.lists(st.tuples(st.integers(0, BOOT + 2000), st.integers(0, 3000)), max_size=6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("target"), st.integers(1, BOOT + 500)),
        st.tuples(st.just("host"), st.integers(1, 3)),
        st.tuples(st.just("honest"), st.integers(0, 5)),
        st.tuples(st.just("lie"), st.tuples(claims, st.booleans())),
        st.tuples(st.just("unballooned"), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("rebind"), st.none()),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_whatever_is_done_the_books_stay_right(steps: list[tuple[str, object]]) -> None:
    """Any operations in any order, a guest that answers rightly, wrongly or not at all: the two sets stay disjoint
    and within RAM, account for every page, and no page is discarded or given back but in turn."""
    play = BalloonHarness()
    play.boot()
    ledger, waiting = play.machine.ledger, deque[p.HostMessage]()
    out: set[int] = set()  # by our own reckoning: discards and unballoons as they are seen
    for what, value in steps:
        try:
            match what, value:
                case "target", int(pages):
                    play.machine.set_target(pages * PAGE)
                case "host", int(limit):
                    sent = play.host_turn(limit)
                    waiting.extend(sent)
                    for message in sent:
                        if isinstance(message, p.UnballoonRequest):
                            given = {q for start, count in message.ranges for q in range(start, start + count)}
                            assert given <= out, "gave back what was not out"
                            assert len(given) == sum(count for _, count in message.ranges)
                            out -= given
                case "honest", int(count):
                    for _ in range(min(count, len(waiting))):
                        message = waiting.popleft()
                        if isinstance(message, p.BalloonRequest):
                            free = sorted(set(range(BOOT)) - out)[: message.pages]
                            play.send_to_host(p.BalloonResponse(1, False, [(q, 1) for q in free[:500]]).build())
                        elif isinstance(message, p.UnballoonRequest) and not message.more:
                            play.send_to_host(p.UnballoonResponse(9, 8, 1).build())
                case "lie", (list(ranges), bool(more)):
                    play.send_to_host(p.BalloonResponse(1, more, ranges).build())
                case "unballooned", None:
                    play.send_to_host(p.UnballoonResponse(9, 8, 1).build())
                case "wait", int(seconds):
                    play.now += seconds
                    play.machine.check_time()
                case "rebind", None:
                    play.machine.closed()
                    waiting.clear()
                    play.boot_without_answers()
                case "reset", None:
                    play.machine.closed()
                    play.machine.power_on(keep_target=True)
                    waiting.clear()
                    out.clear()
                    play.boot_without_answers()
        except GuestProtocolError:
            pass
        for start, count in play.discarded:
            pages = set(range(start, start + count))
            assert pages <= set(range(BOOT)), "discarded something that is not RAM"
            assert not pages & out, "discarded twice"
            out |= pages
        play.discarded.clear()
        assert ledger.removed_guest.isdisjoint(ledger.removed_both)
        assert {q for r in ledger.removed_both for q in range(r.start, r.end)} == out
        assert ledger.current_pages + ledger.removed_pages == BOOT
