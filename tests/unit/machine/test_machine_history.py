"""The time series of a guest's memory pressure."""

from __future__ import annotations

from pyvmm.machine.history import PressureHistory, Sample


def filled(count: int, limit: int = 100) -> PressureHistory:
    history = PressureHistory(limit)
    for number in range(count):
        history.add(Sample(float(number), 10, 20, 30, 0))
    return history


def times(samples: list[Sample]) -> list[float]:
    return [each.time for each in samples]


def test_the_oldest_goes_when_it_is_full() -> None:
    history = filled(5, limit=3)
    assert times(history.newest(10)) == [2.0, 3.0, 4.0]
    assert len(history) == 3


def test_the_newest_come_oldest_first() -> None:
    assert times(filled(5).newest(2)) == [3.0, 4.0]
    assert filled(5).newest(0) == []


def test_later_than_a_time_is_later() -> None:
    assert times(filled(5).since(2.0)) == [3.0, 4.0]
    assert filled(5).since(9.0) == []


def test_an_empty_history_has_no_last_sample() -> None:
    assert filled(0).last is None
