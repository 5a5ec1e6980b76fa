"""Automatic sizing: a guest's demand in, targets out; against a guest in a few lines that follows them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.machine.autosize import AutoSizer, Decision, Limits, Report, Resizing, SizingParameters, wanted

MIB = 1 << 20
LIMITS = Limits(256 * MIB, 4096 * MIB, 20)


def report(time: float, demand: int, current: int, *, out: int = 0, available: int | None = None) -> Report:
    """A report of a guest whose commitments are its demand. Sizes in MiB."""
    free = max(current - demand, 0) if available is None else available
    return Report(time, free * MIB, (demand + out) * MIB, current * MIB, out * MIB)


class Guest:
    """A guest with a sizer; a report a second, a resize takes three. Sizes in MiB."""

    def __init__(self, demand: int, current: int, limits: Limits = LIMITS, floor: int = 0) -> None:
        self.sizer = AutoSizer(limits)
        self.now = 0.0
        self.demand, self.current, self.floor = demand, current, floor
        self.decisions: list[Decision] = []
        self._done = 0.0

    def run(self, seconds: int) -> list[Decision]:
        """What is decided meanwhile."""
        begin = len(self.decisions)
        for _ in range(seconds):
            self.now += 1
            if isinstance(self.sizer.state, Resizing) and self.now >= self._done:
                goal = self.sizer.state.goal // MIB
                self.current = max(goal, self.floor)
                self.sizer.finished(self.now, reached=self.current == goal)
            decision = self.sizer.report(report(self.now, self.demand, self.current))
            if decision is not None:
                self.decisions.append(decision)
                self._done = self.now + 3
        return self.decisions[begin:]


def targets(decisions: list[Decision]) -> list[int]:
    return [each.target // MIB for each in decisions]


# What a report means


def test_pages_in_the_balloon_are_no_demand() -> None:
    assert report(0, 300, 500, out=200).demand == 300 * MIB


def test_memory_in_use_is_demand_even_if_it_is_not_committed() -> None:
    assert report(0, 100, 500, available=50).demand == 450 * MIB


def test_pressure_is_demand_in_percent_of_what_is_there() -> None:
    assert report(0, 250, 500).pressure == 50


def test_the_buffer_comes_on_top_within_the_limits() -> None:
    assert wanted(500 * MIB, LIMITS) == 600 * MIB
    assert wanted(10 * MIB, LIMITS) == 256 * MIB
    assert wanted(5000 * MIB, LIMITS) == 4096 * MIB


# Growing


def test_a_guest_under_pressure_grows_at_once_to_all_that_is_wanted() -> None:
    decision = AutoSizer(LIMITS).report(report(1, 500, 512))
    assert decision == Decision(600 * MIB, "grow", 500 * MIB, 97)


def test_a_guest_that_wants_more_than_its_maximum_is_reported_as_limited() -> None:
    decision = AutoSizer(LIMITS).report(report(1, 4000, 512))
    assert decision is not None
    assert (decision.target, decision.limited) == (4096 * MIB, True)


def test_small_differences_are_left_alone() -> None:
    assert Guest(demand=425, current=500).run(100) == []  # wants 510
    assert Guest(demand=400, current=500).run(100) == []  # wants 480


def test_nothing_is_decided_while_memory_moves() -> None:
    sizer = AutoSizer(LIMITS)
    assert sizer.report(report(1, 500, 512)) is not None
    assert sizer.report(report(2, 900, 512)) is None
    sizer.finished(3, reached=True)
    assert sizer.report(report(4, 900, 600)) is None  # may be of before
    assert sizer.report(report(6, 900, 600)) is not None


def test_a_resize_whose_end_is_never_reported_does_not_stop_sizing_for_ever() -> None:
    sizer = AutoSizer(LIMITS)
    assert sizer.report(report(1, 500, 512)) is not None
    assert sizer.report(report(2 + SizingParameters().give_up, 500, 512)) is not None


# Shrinking


def test_a_surplus_must_last_before_the_guest_shrinks() -> None:
    guest = Guest(demand=300, current=1000)
    assert guest.run(30) == []
    assert [each.reason for each in guest.run(2)] == ["shrink"]


def test_a_guest_shrinks_in_steps_and_stops_where_it_fits() -> None:
    guest = Guest(demand=300, current=1000)
    decisions = guest.run(600)
    assert targets(decisions) == [750, 563, 423, 360]
    assert guest.current == 360


def test_a_peak_in_the_meantime_is_kept_room_for() -> None:
    guest = Guest(demand=300, current=1000)
    guest.run(10)
    guest.demand = 700
    guest.run(1)
    guest.demand = 300
    assert targets(guest.run(25)) == [840]


def test_a_moment_without_surplus_starts_the_wait_again() -> None:
    guest = Guest(demand=300, current=1000)
    guest.run(25)
    guest.demand = 820
    guest.run(1)
    guest.demand = 300
    assert guest.run(25) == []


def test_a_guest_that_keeps_its_floor_is_asked_ever_more_seldom() -> None:
    guest = Guest(demand=100, current=700, floor=650)
    first, second = len(guest.run(300)), len(guest.run(3000))
    assert first <= 4
    assert second <= 5


def test_growth_that_stopped_short_is_not_tried_all_the_time() -> None:
    sizer = AutoSizer(LIMITS)
    assert sizer.report(report(1, 500, 512)) is not None
    sizer.finished(2, reached=False)
    assert sizer.report(report(30, 500, 512)) is None
    assert sizer.report(report(70, 500, 512)) is not None


def test_a_new_guest_starts_with_a_clean_slate() -> None:
    sizer = AutoSizer(LIMITS)
    sizer.report(report(1, 500, 512))
    sizer.finished(2, reached=False)
    sizer.reset()
    assert sizer.report(report(3, 500, 512)) is not None


# Whatever the guest does


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 120)), min_size=1, max_size=8),
    st.integers(256, 4096),
    st.integers(1, 100),
    st.integers(0, 800),
)
def test_targets_stay_within_the_limits(phases: list[tuple[int, int]], current: int, buffer: int, floor: int) -> None:
    guest = Guest(0, current, Limits(256 * MIB, 4096 * MIB, buffer), floor)
    for demand, seconds in phases:
        guest.demand = demand
        guest.run(seconds)
    assert all(256 * MIB <= each.target <= 4096 * MIB for each in guest.decisions)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 6000), st.integers(256, 4096), st.integers(1, 100))
def test_a_constant_demand_comes_to_rest_without_turning_round(demand: int, current: int, buffer: int) -> None:
    guest = Guest(demand, current, Limits(256 * MIB, 4096 * MIB, buffer))
    decisions = guest.run(900)
    assert len({each.reason for each in decisions}) <= 1
    assert guest.run(600) == []
    short = wanted(demand * MIB, guest.sizer.limits) - guest.current * MIB
    assert short < max(16 * MIB, guest.current * MIB * 3 // 100)


@pytest.mark.parametrize("wobble", [5, 10])
def test_a_demand_that_wobbles_moves_nothing(wobble: int) -> None:
    guest = Guest(500, 610)
    for _ in range(50):
        guest.demand = 500 - guest.demand % 2 * wobble
        guest.run(5)
    assert guest.decisions == []
