"""`pyvmm balance` against machines that remember what they were told, and `pyvmm status --history`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator

import pytest

from pyvmm.cli.commands import balance
from pyvmm.client import registry
from tests.support.command_line import Run
from tests.support.fake_machine import MIB, FakeMachine, serving


class Sized(FakeMachine):
    """A machine with a demand of its own. Sizes in MiB."""

    def __init__(self, name: str, actual: int, demand: int | None, most: int = 2048) -> None:
        super().__init__(name)
        self.actual: int = actual * MIB
        self.demand = None if demand is None else demand * MIB
        self.most = most * MIB
        self.told: list[int] = []
        self.sizing: list[bool] = []  # what its own sizing was told

    def set_autosize(self, on: bool) -> None:
        self.sizing.append(on)

    def balloon_set(self, size: int) -> dict[str, object]:
        self.told.append(size // MIB)
        self.actual = size
        return {"target": size, "will-reach": size, "reason": ""}

    def pressure_info(self, count: int, since: float | None) -> dict[str, object]:
        pressure = None if self.demand is None else 100 * self.demand // self.actual
        return super().pressure_info(count, since) | {
            "demand": self.demand,
            "pressure": pressure,
            "target": None,
            "max": self.most,
            "boot": 512 * MIB,
            "autosize": {"enabled": not self.sizing or self.sizing[-1]},
        }


@pytest.fixture
def pair() -> Iterator[tuple[Sized, Sized]]:
    """`idle` has 1000 MiB and needs 300; `busy` has 1000 and needs 1000."""
    idle, busy = Sized("idle", 1000, 300), Sized("busy", 1000, 1000)
    with (
        registry.claim("idle") as first,
        serving(idle, first.socket),
        registry.claim("busy") as second,
        serving(busy, second.socket),
    ):
        yield idle, busy


def test_the_busy_one_gets_what_the_idle_one_has_free(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    idle, busy = pair
    assert pyvmm("balance", "--budget", "2G", "--once").status == 0
    assert (idle.told, busy.told) == ([848], [1048])
    assert pyvmm("balance", "--budget", "2G", "--once").status == 0
    assert busy.told == [1048, 1200]


def test_once_all_fit_nothing_is_sent(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    for _ in range(3):
        pyvmm("balance", "--budget", "2G", "--once")
    before = [list(each.told) for each in pair]
    pyvmm("balance", "--budget", "2G", "--once")
    assert [each.told for each in pair] == before


def test_a_line_a_guest_shows_what_is_done(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    out = pyvmm("balance", "--budget", "2G", "--once").out
    assert "2000 MiB of 2 GiB in use" in out or "2 GiB in use" in out
    assert "-> 848 MiB (-152 MiB)" in out


def test_json_is_a_line_a_look(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    report = json.loads(pyvmm("balance", "--budget", "2G", "--once", "--json").out)
    assert report["actions"] == {"idle": 848 * MIB, "busy": 1048 * MIB}
    assert {each["name"]: each["pressure"] for each in report["guests"]} == {"idle": 30, "busy": 100}
    assert report["problems"] == {}


def test_only_the_named_ones_count(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    idle, busy = pair
    pyvmm("balance", "--budget", "1200M", "--once", "busy")
    assert (idle.told, busy.told) == ([], [1200])


def test_a_budget_below_the_least_of_all_is_said(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    found = pyvmm("balance", "--budget", "300M", "--least", "256M", "--once")
    assert "budget: 300 MiB is less than the sum of the minimums, 512 MiB" in found.err


def test_without_machines_it_says_how_to_start_one(pyvmm: Run) -> None:
    found = pyvmm("balance", "--budget", "2G", "--once")
    assert (found.status, found.err) == (1, "pyvmm: no VM is running: `pyvmm run` starts one\n")


def test_the_budget_is_needed(pyvmm: Run) -> None:
    assert pyvmm("balance").status == 2


def test_their_own_sizing_is_held_at_the_first_look(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    for _ in range(2):
        pyvmm("balance", "--budget", "8G", "--once")
    assert [each.sizing for each in pair] == [[False], [False]]


def test_their_own_sizing_goes_on_at_the_end(
    pair: tuple[Sized, Sized], pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    pair[1].sizing.append(False)  # held by another client: not to be released here
    monkeypatch.setattr("pyvmm.cli.commands.balance.time.sleep", interrupted)
    assert pyvmm("balance", "--budget", "8G").status == 130
    assert (pair[0].sizing, pair[1].sizing) == ([False, True], [False])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_their_own_sizing_go_on(
    pair: tuple[Sized, Sized], pyvmm: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def ended(seconds: float) -> None:
        signal.raise_signal(number)

    def told_again(held: Iterable[str]) -> None:
        signal.raise_signal(signal.SIGTERM)
        let_go(held)

    let_go = balance._resume_sizing
    monkeypatch.setattr(balance, "_resume_sizing", told_again)
    monkeypatch.setattr("pyvmm.cli.commands.balance.time.sleep", ended)
    with pytest.raises(SystemExit) as exit:
        pyvmm("balance", "--budget", "8G")
    assert exit.value.code == 128 + number
    assert [each.sizing for each in pair] == [[False, True], [False, True]]


def test_balloon_auto_lets_sizing_go_on(pair: tuple[Sized, Sized], pyvmm: Run) -> None:
    assert pyvmm("balloon", "idle", "--auto").status == 0
    assert (pair[0].sizing, pair[0].told) == ([True], [])
    assert pyvmm("balloon", "idle", "1G", "--auto").status == 2


def test_history_shows_a_line_a_report(machine: FakeMachine, pyvmm: Run) -> None:
    lines = pyvmm("status", "--history", "5").out.splitlines()
    assert lines[0].split() == ["TIME", "MEMORY", "AVAILABLE", "DEMAND", "PRESSURE"]
    assert len(lines) == 2


def test_history_without_reports_says_when_they_come(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "pressure_info", lambda count, since: {"samples": []})
    assert "45 s" in pyvmm("status", "--history", "5").out
