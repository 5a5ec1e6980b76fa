"""A guest that stops above its target: asked again a few times, by the clock, until something ends that."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.balloon.retry import RetrySchedule
from pyvmm.devices.balloon.states import BalloonPausing, Closed, Idle
from pyvmm.errors import GuestProtocolError
from tests.support.balloon_guest import BalloonGuest
from tests.support.balloon_harness import BOOT, PAGE, PIECE, BalloonHarness

KEPT = BOOT - 3000  # pages that the guest cannot spare at first
TARGET = BOOT - 5000
PAUSES = (1, 2, 4, 8)


@pytest.fixture
def play() -> BalloonHarness:
    """A guest that was asked for more than it has to spare, and has stopped short."""
    play = BalloonHarness(BalloonGuest(BOOT, floor=KEPT)).boot()
    play.machine.set_target(TARGET * PAGE)
    return play.run()


def told(play: BalloonHarness) -> list[tuple[int, bool]]:
    """The outcomes so far: pages the guest had, and whether that was the target."""
    outcomes = [each for each in play.machine.notifications if hasattr(each, "reached")]
    return [(each.actual // PAGE, each.reached) for each in outcomes]


def test_memory_freed_a_moment_later_is_taken_before_an_outcome_is_reported(play: BalloonHarness) -> None:
    assert isinstance(play.machine.state, BalloonPausing)
    play.guest.floor = 0
    play.wait(1)
    assert told(play) == [(TARGET, True)]
    assert isinstance(play.machine.state, Idle)


def test_nothing_is_asked_during_the_pause(play: BalloonHarness) -> None:
    asked = play.requests()
    play.now += 0.9
    play.machine.check_time()
    assert (play.run().requests(), told(play)) == (asked, [])


def test_the_floor_is_reported_after_one_pause_and_requests_go_on(play: BalloonHarness) -> None:
    play.wait(1)
    assert told(play) == [(KEPT, False)]
    assert "floor" in play.outcome().reason
    assert isinstance(play.machine.state, BalloonPausing)
    play.guest.floor = 0
    play.wait(2)
    assert told(play) == [(KEPT, False), (TARGET, True)]
    assert play.outcome().reached


def test_an_end_of_the_asking_is_an_outcome_too(play: BalloonHarness) -> None:
    play.wait(4)
    play.guest.floor -= 100
    play.wait(60)
    assert told(play) == [(KEPT, False), (KEPT - 100, False)]
    assert isinstance(play.machine.state, Idle)


def test_a_guest_that_keeps_its_floor_is_asked_four_times_more_and_no_oftener(play: BalloonHarness) -> None:
    before, times = len(play.requests()), []
    for second in range(1, 3600):
        play.wait(1)
        times += [second] * (len(play.requests()) - before - len(times))
    assert times == [1, 3, 7, 15]
    assert len(play.machine.notifications) == 3 + len(told(play)), "three pieces out and the outcomes"


def test_a_page_at_a_time_does_not_keep_the_host_asking(play: BalloonHarness) -> None:
    before = len(play.requests())
    for _ in range(3600):
        play.guest.floor -= 1
        play.wait(1)
    assert len(play.requests()) == before + len(PAUSES)
    assert len(told(play)) == 2


def test_a_request_fulfilled_begins_the_pauses_anew() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, floor=BOOT)).boot()
    play.machine.set_target((BOOT - 2 * PIECE) * PAGE)
    play.run().wait(7)
    play.guest.floor = BOOT - PIECE
    play.wait(8)
    assert play.machine.ledger.current_pages == BOOT - PIECE
    assert isinstance(play.machine.state, BalloonPausing)
    play.guest.floor = 0
    play.wait(1)
    assert play.outcome().reached


def test_a_new_target_ends_the_pause(play: BalloonHarness) -> None:
    play.machine.set_target((KEPT + 10) * PAGE)
    play.run().wait(60)
    assert told(play) == [(KEPT + 10, True)]
    assert play.guest.answered_unballoons == 1
    assert play.machine.ledger.current_pages == KEPT + 10


def test_memory_goes_back_while_a_try_is_pending_after_the_outcome(play: BalloonHarness) -> None:
    play.wait(2)
    asked = play.requests()
    play.machine.set_target(BOOT * PAGE)
    play.run().guest.floor = 0
    play.wait(60)
    assert play.requests() == asked
    assert (play.guest.out, play.machine.ledger.current_pages) == (set(), BOOT)


def test_the_same_target_begins_the_tries_anew(play: BalloonHarness) -> None:
    play.wait(60)
    before = len(play.requests())
    play.machine.set_target(TARGET * PAGE)
    play.run().wait(60)
    assert len(play.requests()) == before + 1 + len(PAUSES)


@pytest.mark.parametrize("seconds", [0, 2])
def test_a_closed_channel_ends_the_pause(play: BalloonHarness, seconds: int) -> None:
    play.wait(seconds)
    asked = play.requests()
    play.machine.closed()
    play.guest.floor = 0
    play.wait(60)
    assert isinstance(play.machine.state, Closed)
    assert play.requests() == asked
    play.boot()
    assert play.outcome().reached, "bound again, the driver is asked for what is missing"


@pytest.mark.parametrize(("keep", "size"), [(True, TARGET), (False, BOOT)])
def test_after_a_reset_only_a_kept_target_is_asked_for(play: BalloonHarness, keep: bool, size: int) -> None:
    play.wait(2)
    play.machine.closed()
    play.machine.power_on(keep_target=keep)
    play.guest = BalloonGuest(BOOT)
    play.boot().wait(60)
    assert play.machine.ledger.current_pages == size


def test_silence_at_a_further_try_ends_the_asking(play: BalloonHarness) -> None:
    play.wait(2)
    play.now += 1
    play.machine.check_time()
    (request,) = play.host_turn()
    assert isinstance(request, p.BalloonRequest)
    play.now += 30
    play.machine.check_time()
    assert "did not answer" in play.outcome().reason
    play.wait(60)
    assert play.sent[-1] is request


def test_pages_named_during_the_pause_are_not_taken(play: BalloonHarness) -> None:
    with pytest.raises(GuestProtocolError):
        play.send_to_host(p.BalloonResponse(1, False, [(0, 1)]).build())
    assert isinstance(play.machine.state, BalloonPausing)


def test_without_retrying_the_outcome_is_the_end() -> None:
    play = BalloonHarness(BalloonGuest(BOOT, floor=KEPT)).boot()
    play.machine.set_target(TARGET * PAGE, retry_in_background=False)
    play.run().wait(1)
    asked = play.requests()
    assert told(play) == [(KEPT, False)]
    assert isinstance(play.machine.state, Idle)
    assert play.wait(60).requests() == asked


@pytest.mark.parametrize("seconds", [0, 1, 4])
def test_who_decides_from_now_on_is_not_disturbed(play: BalloonHarness, seconds: int) -> None:
    """The command that waits for its outcome gets it all the same."""
    play.wait(seconds)
    play.machine.stop_retrying()
    play.wait(1)
    asked = play.requests()
    assert told(play) == [(KEPT, False)]
    assert isinstance(play.machine.state, Idle)
    assert play.wait(60).requests() == asked


def test_without_pauses_the_first_short_answer_is_the_outcome() -> None:
    patience = RetrySchedule(())
    assert (patience.is_reported_after(1), patience.pause_after(1)) == (True, None)
