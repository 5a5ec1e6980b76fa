"""A budget shared by several guests: sums, limits, and that it comes to rest."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.machine.autosize import Limits
from pyvmm.machine.budget import Member, moves, share

MIB = 1 << 20


def member(
    name: str, current: int, demand: int | None, low: int = 128, high: int = 4096, target: int | None = None
) -> Member:
    """Sizes in MiB."""
    limits = Limits(low * MIB, high * MIB, 20)
    return Member(
        name,
        current * MIB,
        None if demand is None else demand * MIB,
        limits,
        current * MIB,
        None if target is None else target * MIB,
    )


def mib(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size // MIB for name, size in sizes.items()}


# Who gets how much


def test_no_guest_is_resized_without_need() -> None:
    members = [member("a", 800, 300), member("b", 600, 400)]
    assert mib(share(2048 * MIB, members)) == {"a": 800, "b": 600}


def test_the_one_under_pressure_gets_what_is_free() -> None:
    members = [member("a", 800, 300), member("b", 600, 1000)]
    assert mib(share(2048 * MIB, members)) == {"a": 800, "b": 1200}


def test_then_it_gets_what_others_have_too_much() -> None:
    members = [member("a", 1000, 300), member("b", 1000, 1000)]
    assert mib(share(2048 * MIB, members)) == {"a": 848, "b": 1200}


def test_buffers_shrink_before_demands() -> None:
    members = [member("a", 1000, 900), member("b", 1000, 1100)]
    assert mib(share(2048 * MIB, members)) == {"a": 921, "b": 1126}


def test_demands_are_cut_by_the_same_part() -> None:
    members = [member("a", 512, 1128), member("b", 512, 2128)]
    assert mib(share(1256 * MIB, members)) == {"a": 461, "b": 794}


def test_a_guest_that_has_not_reported_needs_its_boot_size() -> None:
    members = [member("a", 1000, None), member("b", 1000, 1500)]
    assert mib(share(2600 * MIB, members)) == {"a": 1000, "b": 1600}


def test_minimums_hold_even_beyond_the_budget() -> None:
    members = [member("a", 512, 100, low=512), member("b", 512, 100, low=512)]
    assert mib(share(900 * MIB, members)) == {"a": 512, "b": 512}


def test_moves_not_worth_making_are_left_out() -> None:
    members = [member("a", 600, 505), member("b", 1000, 300)]
    assert mib(share(1600 * MIB, members)) == {"a": 600, "b": 1000}


# In which order


def test_memory_is_promised_only_once_it_is_free() -> None:
    members = [member("a", 1000, 300), member("b", 1000, 1000)]
    targets = {"a": 848 * MIB, "b": 1200 * MIB}
    assert mib(moves(2048 * MIB, members, targets)) == {"a": 848, "b": 1048}


def test_a_promise_counts_until_it_is_kept() -> None:
    members = [member("a", 848, 300), member("b", 900, 1000, target=1048)]
    assert mib(moves(2048 * MIB, members, {"a": 848 * MIB, "b": 1200 * MIB})) == {"b": 1200}


def test_the_same_target_is_not_set_again() -> None:
    members = [member("a", 1000, 300, target=800)]
    assert moves(2048 * MIB, members, {"a": 800 * MIB}) == {}


def test_the_one_under_the_highest_pressure_comes_first() -> None:
    members = [member("a", 500, 450), member("b", 500, 900)]
    assert mib(moves(1100 * MIB, members, {"a": 600 * MIB, "b": 1000 * MIB})) == {"b": 600}


# Whatever they demand

SIZES = st.integers(64, 6000)


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, list[Member]]:
    """A budget that holds the minimums, and one to five guests."""
    members = []
    for number in range(draw(st.integers(1, 5))):
        low = draw(st.integers(64, 512))
        high = draw(st.integers(low, 6000))
        members.append(
            member(f"vm{number}", draw(st.integers(low, high)), draw(st.none() | SIZES), low=low, high=high)
        )
    least = sum(each.limits.minimum for each in members) // MIB
    return draw(st.integers(least, least + 12000)) * MIB, members


def step(budget: int, members: list[Member]) -> tuple[list[Member], dict[str, int]]:
    """One round: what is set is reached."""
    now = moves(budget, members, share(budget, members))
    return [replace(each, current=now.get(each.name, each.current)) for each in members], now


@settings(deadline=None)
@given(groups())
def test_the_sum_is_within_the_budget_and_each_within_its_limits(group: tuple[int, list[Member]]) -> None:
    budget, members = group
    targets = share(budget, members)
    assert sum(targets.values()) <= budget
    for each in members:
        assert each.limits.minimum <= targets[each.name] <= each.limits.maximum


@settings(deadline=None)
@given(groups())
def test_it_comes_to_rest_within_a_few_rounds(group: tuple[int, list[Member]]) -> None:
    budget, members = group
    for _ in range(6):
        members, now = step(budget, members)
        if not now:
            break
    assert step(budget, members)[1] == {}
    assert sum(each.current for each in members) <= budget


@settings(deadline=None)
@given(groups())
def test_no_guest_turns_round_on_the_way(group: tuple[int, list[Member]]) -> None:
    budget, members = group
    directions: dict[str, set[bool]] = {each.name: set() for each in members}
    for _ in range(6):
        before = {each.name: each.current for each in members}
        members, now = step(budget, members)
        for name, size in now.items():
            directions[name].add(size > before[name])
    assert all(len(each) <= 1 for each in directions.values())


@settings(deadline=None)
@given(groups())
def test_at_no_time_is_more_out_than_the_budget_once_it_fits(group: tuple[int, list[Member]]) -> None:
    budget, members = group
    for _ in range(6):
        before = sum(each.held for each in members)
        now = moves(budget, members, share(budget, members))
        promised = sum(max(each.current, now.get(each.name, each.current)) for each in members)
        assert promised <= max(budget, before)
        members = [replace(each, current=now.get(each.name, each.current)) for each in members]
