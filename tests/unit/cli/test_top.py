from __future__ import annotations

import io
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pyvmm.cli.commands import top as command
from pyvmm.cli.commands.top import Board, self_contained
from pyvmm.cli.top.keys import decode
from pyvmm.cli.top.samples import Memory, sample
from pyvmm.cli.top.view import Row, Screen, bar, rate
from pyvmm.cli.top.watcher import Watcher
from pyvmm.client import registry
from tests.support.command_line import Run
from tests.support.fake_machine import MIB, FakeMachine, serving

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


LINES = [(float(number), f"vmbus_post_msg type {number}") for number in range(40)]


def later(**changes: object) -> dict[str, object]:
    channel = STATUS["vmbus"][0] | {"signals-in": 14, "packets-out": 30}  # type: ignore[index,operator]
    return (
        STATUS | {"exits": {"vcpu0": {"IoOut": 300, "Hlt": 5}, "vcpu1": {"IoOut": 30}}, "vmbus": [channel]} | changes
    )


def shown(rows: list[Row], chosen: int = 0, width: int = 120, height: int | None = None, help: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(Screen(rows, chosen, height=height, help=help))
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
def test_a_machine_with_few_values_is_shown_too(status: dict[str, object]) -> None:
    assert "web" in shown([Row("web", sample(status, None, 0.0))])


def test_the_screen_shows_all_that_is_known() -> None:
    text = shown([Row("web", sample(later(), STATUS, 2.0), lines=[(1.5, "vmbus_post_msg type 1 size 8")])])
    for words in ("web", "running", "256 MiB", "target", "61%", "IoOut", "hv-balloon", "25%", "vmbus_post_msg"):
        assert words in text


def test_a_machine_that_does_not_answer_is_a_row() -> None:
    assert "not answering" in shown([Row("web", None, "not answering")])


def test_no_machine_says_how_to_get_one() -> None:
    assert "pyvmm run" in shown([])


@pytest.mark.parametrize("width", [60, 80, 100, 110, 200])
@pytest.mark.parametrize("height", [12, 24, 30, 45])
@pytest.mark.parametrize("machines", [1, 2, 40])
def test_the_screen_fits_any_terminal(width: int, height: int, machines: int) -> None:
    rows = [Row("database", sample(later(), STATUS, 2.0), lines=LINES)] * machines
    lines = shown(rows, machines - 1, width, height).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == height
    assert "database" in lines[2 if lines[1].strip() else 4]
    assert sum("vmbus_post_msg" in line for line in lines) >= 3


@pytest.mark.parametrize("width", [60, 80, 110])
def test_nothing_is_cut_where_room_is_scarce(width: int) -> None:
    machines = [Row("database", sample(later(uptime=7384.0), STATUS, 2.0)), Row("web", None)]
    text = shown(machines, width=width, height=24)
    assert "…" not in text
    for words in ("256M→128M" if width < 97 else "256 MiB", "61%", "25%", "2 refused"):
        assert words in text


def test_the_chosen_machine_has_a_mark_and_is_within_sight() -> None:
    rows = [Row(f"vm{number}", sample(STATUS, None, 0.0)) for number in range(40)]
    text = shown(rows, 30, 80, 24)
    assert [line.split()[1] for line in text.splitlines() if "▸" in line] == ["vm30"]
    assert "▸" not in shown(rows[:1])


def test_help_takes_the_place_of_the_figures() -> None:
    text = shown([Row("web", sample(STATUS, None, 0.0))], width=80, height=24, help=True)
    assert "choose a machine" in text
    assert "VMBus channels" not in text
    assert "…" not in text


def test_a_machine_that_ended_shows_how_instead_of_rates() -> None:
    panic = "one\n" * 50 + "Kernel panic - not syncing: x\n" + "call trace\n" * 50
    row = Row("web", sample(later(), STATUS, 2.0), "panicked", LINES, True, panic)
    text = shown([row], width=80, height=24)
    for words in ("panicked", "Kernel panic", "vmbus_post_msg"):
        assert words in text
    assert "exits a second" not in text
    off = shown([Row("web", None, "powered off", LINES, True)], width=80, height=24)
    assert off.count("vmbus_post_msg") == 16


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


def test_keys_resize_and_choose(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board((), 0.1)
    deadline = time.monotonic() + 10
    while board.watchers[0].sample is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert board.key("-")
    assert board.key("-")
    while machine.actual != 448 * MIB and time.monotonic() < deadline:
        time.sleep(0.01)
    assert machine.actual == 448 * MIB
    assert board.note == "web: asked for 448 MiB"
    monkeypatch.setattr(command, "NOTE", 0.0)
    assert board.note == ""
    assert board.key("down")
    assert board.chosen == 0
    assert board.key("?")
    assert board.help
    assert not board.key("q")
    board.close()


def watched(board: Board, *, until: Callable[[Watcher], object]) -> Watcher:
    """The board's only machine, once it is as wanted."""
    deadline = time.monotonic() + 10
    while not until(board.watchers[0]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return board.watchers[0]


def test_how_a_machine_ended_stays_to_be_seen_until_another_takes_its_name(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FakeMachine("dying")
    with registry.claim("dying") as registration, serving(made, registration.socket):
        board = Board((), 0.1)
        watched(board, until=lambda each: each.sample)
        made.emit("GUEST_PANICKED", **{"action": "poweroff", "x-text": "Kernel panic"})
        made.emit("SHUTDOWN", guest=True, reason="guest-panic")
        made.ended()
        found = watched(board, until=lambda each: each.ended)
    assert (found.error, found.last_words) == ("panicked", "Kernel panic")
    board.refresh_machines()
    assert board.watchers == [found]
    monkeypatch.setattr(command, "LINGER", 0.0)
    board.refresh_machines()
    assert board.watchers == []
    board.close()


@pytest.mark.parametrize("by", ["name", "socket"])
def test_a_named_machine_is_watched_again_in_its_place_when_it_is_back(runtime: Path, by: str) -> None:
    made = FakeMachine("web")
    with registry.claim("other") as other, serving(FakeMachine("other"), other.socket):
        with registry.claim("web") as registration, serving(made, registration.socket):
            board = Board(("web" if by == "name" else str(registration.socket), "other"), 0.1)
            watched(board, until=lambda each: each.sample)
            made.quit()
            watched(board, until=lambda each: each.ended)
        board.refresh_machines()
        assert board.watchers[0].ended
        again = FakeMachine("web")
        with registry.claim("web") as registration, serving(again, registration.socket):
            board.refresh_machines()
            watched(board, until=lambda each: each.sample)
            assert [each.entry.name for each in board.watchers] == ["web", "other"]
            assert not board.watchers[0].ended
        board.close()


def test_a_machine_that_starts_is_asked_again(runtime: Path) -> None:
    made = FakeMachine("slow")
    with registry.claim("slow") as registration:
        board = Board((), 0.1)
        assert watched(board, until=lambda each: each.error).error == "starting"
        with serving(made, registration.socket):
            assert watched(board, until=lambda each: each.sample and not each.error).sample is not None
            board.close()


def test_a_machine_whose_socket_is_silent_yet_starts(runtime: Path) -> None:
    with registry.claim("slow") as registration, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(registration.socket))
        silent.listen(4)
        board = Board((), 0.1)
        assert watched(board, until=lambda each: each.error).error == "starting"
        board.close()


def test_top_once_prints_for_programs(machine: FakeMachine, pyvmm: Run) -> None:
    (found,) = json.loads(pyvmm("top", "--once", "--json", "-i", "0.1").out)
    assert (found["name"], found["error"], found["memory"]["actual"]) == ("web", "", 512 * MIB)
    assert found["exit-rate"] == 0
    assert found["channels"][0]["signals-in"] == 0
    assert pyvmm("top", "--json").status == 2


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
