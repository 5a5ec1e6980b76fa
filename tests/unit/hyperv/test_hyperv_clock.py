"""The reference counter and the page that computes it."""

from __future__ import annotations

from struct import unpack

import pytest

from pyvmm.hyperv.clock import ReferenceClock, tsc_scale


class Now:
    """Nanoseconds that move when told."""

    def __init__(self) -> None:
        self.ns = 5_000_000_000

    def __call__(self) -> int:
        return self.ns


def read(page: bytes, tsc: int) -> int:
    """What a guest computes from the page."""
    _, _, scale, offset = unpack("<IIQQ", page)
    return ((tsc * scale >> 64) + offset) % (1 << 64)


@pytest.mark.parametrize("hertz", [1_000_000_000, 2_294_608_000, 2_000_000_000, 4_999_999_999, 20_000_000])
def test_the_page_yields_the_counter(hertz: int) -> None:
    now = Now()
    clock = ReferenceClock(now)
    now.ns += 3_000_000_000
    page = clock.page(tsc := 123_456_789_012, hertz)
    assert abs(read(page, tsc) - clock.ticks()) <= 1
    seconds = 3600
    now.ns += seconds * 1_000_000_000
    assert abs(read(page, tsc + seconds * hertz) - clock.ticks()) <= 2


def test_the_count_at_a_tsc_is_the_page_s() -> None:
    clock = ReferenceClock(Now())
    page = clock.page(10**15, 2_294_608_000)
    for tsc in (10**15, 10**15 + 7, 10**16, 0):
        assert clock.ticks_at(tsc) == read(page, tsc)


def test_the_counter_follows_the_page_where_the_host_s_clock_drifts() -> None:
    now, hertz = Now(), 2_000_000_000
    clock = ReferenceClock(now)
    page = clock.page(tsc := 10**12, hertz)
    assert not clock.may_stray
    now.ns += 1000 * 1_000_500_000  # 500 ppm, for 1000 s
    tsc += 1000 * hertz
    assert clock.ticks() - read(page, tsc) == 5_000_000
    assert clock.may_stray
    clock.follow(tsc)
    assert abs(clock.ticks() - read(page, tsc)) <= 1
    assert not clock.may_stray
    assert clock.ns_at(clock.ticks()) <= now.ns < clock.ns_at(clock.ticks() + 1)


def test_a_guest_that_sets_its_tsc_moves_the_counter_within_64_bits() -> None:
    now = Now()
    clock = ReferenceClock(now)
    page = clock.page(10**6, 20_000_000)
    for tsc in (0, 1, 1 << 63, (1 << 64) - 1):
        clock.follow(tsc)
        assert clock.ticks() == read(page, tsc)
        now.ns += 10**18
        assert clock.ticks() < 1 << 64


def test_the_counter_starts_at_zero_and_counts_100_ns() -> None:
    now = Now()
    clock = ReferenceClock(now)
    assert clock.ticks() == 0
    now.ns += 1000
    assert clock.ticks() == 10
    clock.restart()
    assert clock.ticks() == 0


def test_a_tsc_older_than_the_partition_gives_a_negative_offset_that_wraps() -> None:
    page = ReferenceClock(Now()).page(10**15, 2_000_000_000)
    assert read(page, 10**15) in (0, (1 << 64) - 1)


def test_each_page_has_a_new_sequence_that_is_never_invalid() -> None:
    clock = ReferenceClock(Now())
    first, second = (unpack("<I", clock.page(0, 10**9)[:4])[0] for _ in range(2))
    assert (first, second) == (1, 2)
    clock._sequence = 0xFFFFFFFE
    assert unpack("<I", clock.page(0, 10**9)[:4])[0] == 1


def test_the_scale_is_a_fraction_of_two_to_the_64() -> None:
    assert tsc_scale(20_000_000) == 1 << 63


def test_a_shifted_counter_has_not_counted_meanwhile() -> None:
    now = Now()
    clock = ReferenceClock(now)
    now.ns += 1_000_000_000
    clock.page(10**12, 2_000_000_000)
    before = clock.ticks()
    now.ns += 3_600_000_000_000
    clock.shift(3_600_000_000_000)
    assert clock.ticks() == before
    assert not clock.may_stray
