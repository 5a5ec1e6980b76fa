"""The address map: consistent in itself, and the only place where its numbers stand."""

from __future__ import annotations

import ast
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyvmm.address_map import COM1, COM2, CONSOLE_WINDOW, HOT_ADD_SLOTS, MAP, RAM_SLOTS, RESET
from pyvmm.cli.commands.doctor import doctor
from pyvmm.firmware.e820 import ram_layout

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("pyvmm", "devices", "firmware", "images")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "pyvmm" / "address_map.py" and path != ROOT / "pyvmm" / "kvm" / "__main__.py"
]
"""All but the map, and kvm's demo, whose guest is a machine of its own."""
TELLING = {COM1.start, COM2.start, RESET.start} | {
    place.start for place in MAP["memory"] if 3 << 30 < place.start < 4 << 30
}
"""Numbers that mean an address wherever they stand; 0x600 and 9 do not."""


@pytest.mark.parametrize("space", MAP)
def test_places_lie_apart_or_one_in_the_other(space: str) -> None:
    for one, other in combinations(MAP[space], 2):
        low, high = sorted((one, other), key=lambda place: (place.start, -place.size))
        assert low.end <= high.start or high.end <= low.end, f"{low.what} and {high.what} overlap"


def test_every_address_stands_in_the_map_only() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int and node.value in TELLING:
                raise AssertionError(f"{path}:{node.lineno}: {node.value:#x} is in pyvmm.address_map")


def test_boot_ram_has_slots_enough() -> None:
    assert len(ram_layout(1 << 40)) <= RAM_SLOTS.size


def test_the_machines_of_older_kvms_have_room_for_hot_added_memory() -> None:
    assert HOT_ADD_SLOTS.end <= 509


def test_doctor_prints_every_place() -> None:
    printed = CliRunner().invoke(doctor, ["--map"], standalone_mode=False).output
    for places in MAP.values():
        for place in places:
            assert place.what in printed
    assert f"{CONSOLE_WINDOW.start:013x}-" in printed
