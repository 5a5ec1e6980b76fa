from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from command_line import Run
from fake_machine import MIB, FakeMachine
from rich.console import Console

from pyvmm.cli.top.command import Board, self_contained
from pyvmm.cli.top.keys import decode
from pyvmm.cli.top.samples import Memory, sample
from pyvmm.cli.top.view import Row, bar, rate, screen

STATUS = {
    "name": "web",
    "status": "running",
    "uptime": 65.0,
    "cpus": 2,
    "engine": "user",
    "resets": 0,
    "memory": {"boot": 512 * MIB, "actual": 256 * MIB, "target": 128 * MIB, "resident": 300 * MIB},
    "balloon": {
        "state": "Idle",
        "version": "2.0",
        "available": 100 * MIB,
        "committed": 400 * MIB,
        "removed-both": 256 * MIB,
    },
    "vmbus": [
        {
            "relid": 1,
            "name": "hv-balloon",
            "state": "open",
            "ring-in": 1000,
            "ring-in-used": 250,
            "ring-out": 1000,
            "ring-out-used": 0,
            "packets-in": 10,
            "packets-out": 10,
            "signals-in": 10,
            "signals-out": 10,
            "refused": 2,
        }
    ],
    "exits": {"vcpu0": {"IoOut": 100, "Hlt": 5}, "vcpu1": {"IoOut": 10}},
}


def later(**changes: object) -> dict[str, object]:
    channel = STATUS["vmbus"][0] | {"signals-in": 14, "packets-out": 30}  # type: ignore[index,operator]
    return (
        STATUS | {"exits": {"vcpu0": {"IoOut": 300, "Hlt": 5}, "vcpu1": {"IoOut": 30}}, "vmbus": [channel]} | changes
    )


def shown(rows: list[Row], chosen: int = 0, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(rows, chosen))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_rates_are_counted_between_two_samples() -> None:
    found = sample(later(), STATUS, 2.0)
    assert found.exits == {"vcpu0": {"IoOut": 100.0, "Hlt": 0.0}, "vcpu1": {"IoOut": 10.0}}
    assert found.exit_rate == 110.0
    assert found.exits_by_kind() == [("IoOut", 110.0), ("Hlt", 0.0)]
    (channel,) = found.channels
    assert (channel.signals_in, channel.packets, channel.fill_in, channel.trouble) == (2.0, 10.0, 0.25, "2 refused")


def test_the_first_sample_has_no_rates() -> None:
    found = sample(STATUS, None, 0.0)
    assert (found.exit_rate, found.channels[0].signals_in, found.totals) == (0.0, 0.0, {"IoOut": 110, "Hlt": 5})


def test_a_reset_does_not_make_rates_negative() -> None:
    assert sample(later(exits={"vcpu0": {"IoOut": 3}}, resets=1), STATUS, 1.0).exit_rate == 0.0


def test_pressure_is_demand_by_memory() -> None:
    assert sample(STATUS, None, 0).memory.pressure == pytest.approx(156 / 256)
    assert Memory(512, 512, None, None, None, None).pressure is None


@pytest.mark.parametrize("status", [{}, {"memory": None, "balloon": None, "vmbus": None, "exits": None}])
def test_a_machine_that_tells_little_is_shown_too(status: dict[str, object]) -> None:
    assert "web" in shown([Row("web", sample(status, None, 0.0))])


def test_the_screen_shows_all_that_is_known() -> None:
    text = shown([Row("web", sample(later(), STATUS, 2.0), lines=[(1.5, "vmbus_post_msg type 1 size 8")])])
    for words in ("web", "running", "256 MiB", "target", "61%", "IoOut", "hv-balloon", "25%", "vmbus_post_msg"):
        assert words in text


def test_a_machine_that_does_not_answer_is_a_row() -> None:
    assert "not answering" in shown([Row("web", None, "not answering")])


def test_no_machine_says_how_to_get_one() -> None:
    assert "pyvmm run" in shown([])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_fits_any_terminal(width: int) -> None:
    text = shown([Row("web", sample(later(), STATUS, 2.0)), Row("db", None)], 1, width)
    assert max(map(len, text.splitlines())) <= width


def test_the_picture_keeps_its_height() -> None:
    full, bare = (shown([Row("web", sample(status, None, 0))]) for status in (STATUS, STATUS | {"balloon": None}))
    assert full.count("\n") == bare.count("\n")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3.21, "3.2"), (417, "417"), (12_400, "12.4k")])
def test_rates_are_short(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(("part", "text"), [(-1, "····"), (0.5, "██··"), (0.125, "▌···"), (1, "████"), (9, "████")])
def test_bars_have_their_width(part: float, text: str) -> None:
    assert bar(part, 4).plain == text


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1b[A\x1b[Bq", ["up", "down", "q"]),
        (b"\x1bOA", ["up"]),
        (b"\x1b", ["q"]),
        (b"=-+_", ["+", "-", "+", "-"]),
        (b"jk", ["down", "up"]),
        (b"\x1b[15~x", ["x"]),
        (b"\xff", ["\ufffd"]),
    ],
)
def test_keys_are_words(data: bytes, keys: list[str]) -> None:
    assert decode(data) == keys


def test_keys_resize_and_choose(machine: FakeMachine) -> None:
    board = Board((), 0.1)
    deadline = time.monotonic() + 10
    while board.watchers[0].sample is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert board.key("-")
    assert board.key("-")
    while machine.actual != 448 * MIB and time.monotonic() < deadline:
        time.sleep(0.01)
    assert machine.actual == 448 * MIB
    assert board.key("down")
    assert board.chosen == 0
    assert not board.key("q")
    board.close()


def test_top_once_prints_a_picture(machine: FakeMachine, pyvmm: Run) -> None:
    found = pyvmm("top", "--once", "-i", "0.1", "--width", "100")
    assert found.status == 0
    assert "web" in found.out
    assert "VMBus channels" in found.out


def test_top_svg_fetches_nothing(machine: FakeMachine, pyvmm: Run, tmp_path: Path) -> None:
    assert pyvmm("top", "--svg", str(tmp_path / "t.svg"), "-i", "0.1").status == 0
    svg = (tmp_path / "t.svg").read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert "@font-face" not in svg


def test_fonts_are_stripped() -> None:
    assert self_contained("<!-- x --><style>@font-face { src: url('a'); } b {}</style>") == "<style> b {}</style>"


def test_top_without_a_terminal_says_so(machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    found = pyvmm("top")
    assert (found.status, found.err) == (
        1,
        "pyvmm: `pyvmm top` needs a terminal; --once prints one picture anywhere\n",
    )
