"""Status reports joined to the time series and to automatic sizing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.devices.balloon.plan import ResizeOutcome
from pyvmm.errors import ConfigError
from pyvmm.machine.autosize import Limits
from pyvmm.machine.pressure import Pressure

MIB = 1 << 20
PAGES = 256  # in a MiB


class Balloon:
    """What Pressure uses of a BalloonDevice, of a guest with 512 MiB."""

    def __init__(self) -> None:
        self.on_status: list[Any] = []
        self.on_finish: list[Any] = []
        self.targets: list[int] = []
        self.last_status: object = None
        self.retrying = True  # on a target set by hand
        ledger = SimpleNamespace(
            current_pages=512 * PAGES,
            actual_pages=512 * PAGES,
            removed_pages=0,
            boot_pages=512 * PAGES,
            maximum_pages=1024 * PAGES,
        )
        self.machine = SimpleNamespace(ledger=ledger)

    @property
    def target(self) -> int | None:
        return self.targets[-1] if self.targets else None

    def set_target(self, size: int, *, retry_in_background: bool) -> None:
        assert not retry_in_background, "a target that sizing no longer wants would be asked for again"
        self.targets.append(size)

    def stop_retrying(self) -> None:
        self.retrying = False

    def report(self, available: int, committed: int) -> None:
        self.last_status = object()
        for listener in self.on_status:
            listener(available * MIB, committed * MIB)

    def finish(self, *, reason: str = "") -> None:
        for listener in self.on_finish:
            listener(ResizeOutcome(0, 0, reason))


class Setup:
    def __init__(self, limits: Limits | None) -> None:
        self.balloon = Balloon()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        self.pressure = Pressure(
            self.balloon,  # type: ignore[arg-type]
            limits,
            self.events.append,
            wall=lambda: 1000 + self.now,
            clock=lambda: self.now,
        )


@pytest.fixture
def sized() -> Setup:
    return Setup(Limits(256 * MIB, 1024 * MIB, 20))


def test_pressure_sets_the_target_and_reports_it(sized: Setup) -> None:
    sized.balloon.report(20, 500)
    assert sized.balloon.targets == [600 * MIB]
    data = {"target": 600 * MIB, "reason": "grow", "demand": 500 * MIB, "pressure": 97, "limited": False}
    assert sized.events == [("X_AUTOSIZE", data)]


def test_the_next_decision_waits_for_the_end_of_the_resize(sized: Setup) -> None:
    sized.balloon.report(20, 500)
    sized.now = 10
    sized.balloon.report(20, 700)
    assert len(sized.balloon.targets) == 1
    sized.balloon.finish()
    sized.now = 15
    sized.balloon.report(20, 700)
    assert sized.balloon.targets[1] == 840 * MIB


def test_held_sizing_decides_nothing_until_it_is_let_go(sized: Setup) -> None:
    sized.pressure.set_automatic(False)
    sized.balloon.report(20, 500)
    assert sized.balloon.targets == []
    assert sized.balloon.retrying
    sized.pressure.set_automatic(True)
    assert not sized.balloon.retrying, "the manually set target is no longer retried"
    sized.balloon.report(20, 500)
    assert sized.balloon.targets == [600 * MIB]
    assert [name for name, _ in sized.events] == ["X_AUTOSIZE_CHANGE", "X_AUTOSIZE_CHANGE", "X_AUTOSIZE"]


def test_without_limits_there_is_a_history_and_no_sizing() -> None:
    plain = Setup(None)
    plain.balloon.report(20, 500)
    assert (plain.balloon.targets, plain.events, plain.pressure.describe()) == ([], [], None)
    assert plain.pressure.info(10, None)["samples"] == [
        {"time": 1000.0, "available": 20 * MIB, "committed": 500 * MIB, "actual": 512 * MIB, "out": 0}
    ]
    plain.pressure.set_automatic(False)
    with pytest.raises(ConfigError, match="no automatic sizing"):
        plain.pressure.set_automatic(True)


def test_pressure_is_of_a_driver_that_is_there(sized: Setup) -> None:
    assert sized.pressure.info(10, None)["pressure"] is None
    sized.balloon.report(20, 500)
    assert sized.pressure.info(10, None)["pressure"] == 97
    sized.balloon.last_status = None  # the channel was closed
    info = sized.pressure.info(10, None)
    assert (info["pressure"], len(info["samples"])) == (None, 1)


def test_samples_later_than_a_time_are_asked_for(sized: Setup) -> None:
    for now in range(3):
        sized.now = now
        sized.balloon.report(300, 100)
    assert [each["time"] for each in sized.pressure.info(1 << 30, 1000.0)["samples"]] == [1001.0, 1002.0]
