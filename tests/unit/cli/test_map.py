"""`pyvmm map`: its pictures of what a machine answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pyvmm.analysis.page_map import LOOKS, grid, lines, read_map, svg
from pyvmm.errors import ConfigError
from pyvmm.qapi import ENUMS
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine

MIB = 1 << 20


def plain(_owner: str, text: str) -> str:
    return text


def made(*spans: tuple[int, int, str], special: tuple[tuple[int, int, str], ...] = ()) -> Any:
    rows = [{"start": start, "size": size, "owner": owner} for start, size, owner in spans]
    shown = [{"start": start, "size": size, "owner": owner, "detail": "VP 0"} for start, size, owner in special]
    totals = [{"owner": owner, "size": size} for _, size, owner in spans]
    return {"name": "vm", "spans": rows, "special": shown, "totals": totals, "coarse": False, "left-out": 0}


def test_it_shows_cells_a_legend_and_the_pages_with_a_purpose(pyvmm: Run, machine: FakeMachine) -> None:
    shown = pyvmm("map", "web")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == "web: 384 MiB with the guest; a character is 512 KiB"
    assert "█H█" in shown.out
    assert "128 MiB  out: given to the host through the balloon" in shown.out
    assert "H  0x0000100000 - 0x0000101000  hypercall page" in shown.out
    assert "\x1b" not in shown.out


def test_json_is_the_monitors_answer(pyvmm: Run, machine: FakeMachine) -> None:
    assert json.loads(pyvmm("map", "--json").out) == machine.page_map()


def test_the_picture_is_well_formed_and_needs_no_other_file(pyvmm: Run, machine: FakeMachine, tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    assert pyvmm("map", "--svg", str(file)).out.strip() == str(file)
    text = file.read_text()
    ElementTree.fromstring(text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_file_that_cannot_be_written_is_one_line(pyvmm: Run, machine: FakeMachine, tmp_path: Path) -> None:
    shown = pyvmm("map", "--svg", str(tmp_path / "no" / "map.svg"))
    assert (shown.status, shown.err.count("\n")) == (1, 1)
    assert "No such file or directory" in shown.err


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_keep_to_the_width(width: int) -> None:
    found = made((0, 3 << 30, "ram"), (1 << 32, 1 << 30, "unmapped"), special=((MIB, 4096, "ring"),))
    assert max(len(line) for line in lines(found, width, plain)) <= max(width, 80)


def test_every_owner_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(ENUMS["PageOwner"])
    assert len({look.mark for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.fill for look in LOOKS.values()}) == len(LOOKS)


def test_a_page_with_a_purpose_shows_among_all_others() -> None:
    cells = grid(made((0, 1 << 40, "ram"), special=((1 << 39, 4096, "ring"),)), 64).strips[0].cells
    assert cells.count("ring") == 1


def test_a_cell_shows_who_has_most_of_it() -> None:
    found = made((0, 600 * MIB, "ram"), (600 * MIB, 424 * MIB, "out"))
    assert grid(found, 1, rows=1).strips[0].cells == ["ram"]


def test_lines_that_repeat_are_counted() -> None:
    shown = list(lines(made((0, 1 << 40, "unmapped")), 80, plain))
    assert any("more lines like this" in line for line in shown)


def test_text_of_a_hostile_monitor_is_escaped() -> None:
    found = made((0, MIB, "\x1b[2J<b>"), special=((0, 4096, "\x1b]0;x\x07"),))
    found["name"] = "\x1b[31mvm"
    assert all(line.isprintable() or not line for line in lines(found, 80, plain))
    picture = svg(found)
    assert "\x1b" not in picture
    ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    "reply",
    [None, [], {}, {"spans": 1}, made((0, -1, "ram")), made((0, 1 << 70, "ram")), made((0, 1, 3)), "text"],  # type: ignore[arg-type]
)
def test_what_is_no_map_is_refused(reply: object) -> None:
    with pytest.raises(ConfigError, match="no map of pages"):
        read_map(reply)


def test_an_empty_map_is_drawn() -> None:
    assert next(iter(lines(made(), 80, plain))).startswith("vm: 0")
    ElementTree.fromstring(svg(made()))
