"""X_BALLOON_FINISHED as the machine emits it, from a balloon whose guest the test plays."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.machine.resize_events import ResizeEvents
from tests.support.balloon_guest import BalloonGuest
from tests.support.balloon_harness import BOOT, PAGE, BalloonHarness
from tests.support.fake_clock import FakeLoop


class Told:
    """A played balloon as `ResizeEvents` sees a device, and the events that came of it."""

    def __init__(self, play: BalloonHarness) -> None:
        self.play, self.loop = play, FakeLoop()
        self.on_finish: list[Any] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        ResizeEvents(self, self.events.append, self.loop)  # type: ignore[arg-type]

    @property
    def last_outcome(self) -> object:
        return self.play.machine.outcome

    def turn(self) -> list[dict[str, Any]]:
        """What a turn of the loop told after all that happened."""
        while self.play.machine.notifications:
            event = self.play.machine.notifications.popleft()
            for listener in self.on_finish if hasattr(event, "reached") else ():
                listener(event)
        self.events.clear()
        self.loop.run()
        assert {name for name, _ in self.events} <= {"X_BALLOON_FINISHED"}
        return [data for _, data in self.events]


@pytest.fixture
def told() -> Told:
    return Told(BalloonHarness().boot())


def test_a_target_that_is_reached_is_reported_with_no_reason(told: Told) -> None:
    told.play.machine.set_target((BOOT - 512) * PAGE)
    assert told.turn() == []
    told.play.run()
    size = (BOOT - 512) * PAGE
    assert told.turn() == [{"target": size, "actual": size, "reason": "", "final": True}]


def test_a_target_that_was_reached_already_is_reported_too(told: Told) -> None:
    told.play.machine.set_target(BOOT * PAGE)
    assert told.turn() == [{"target": BOOT * PAGE, "actual": BOOT * PAGE, "reason": "", "final": True}]


def test_a_guest_that_stops_short_is_reported_before_the_next_request_and_after_the_last() -> None:
    told = Told(BalloonHarness(BalloonGuest(BOOT, floor=BOOT - 256)).boot())
    told.play.machine.set_target((BOOT - 512) * PAGE)
    told.play.run()
    assert told.turn() == [], "asked once more first"
    told.play.wait(3)
    (first,) = told.turn()
    assert (first["actual"], first["final"]) == ((BOOT - 256) * PAGE, False)
    assert "its floor" in first["reason"]
    told.play.wait(60)
    (last,) = told.turn()
    assert last == first | {"final": True}


def test_an_outcome_is_not_reported_once_another_target_is_set(told: Told) -> None:
    told.play.machine.set_target(BOOT * PAGE)
    for listener in told.on_finish:
        listener(told.last_outcome)
    told.play.machine.notifications.clear()
    told.play.machine.set_target((BOOT - 512) * PAGE)
    assert told.turn() == []


def test_a_reset_that_drops_the_target_ends_the_resize(told: Told) -> None:
    told.play.machine.set_target((BOOT - 512) * PAGE)
    told.play.machine.closed()
    told.play.machine.power_on(keep_target=False)
    (event,) = told.turn()
    assert (event["target"], event["reason"]) == ((BOOT - 512) * PAGE, "the machine was reset")
