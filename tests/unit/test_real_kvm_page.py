"""docs/real-kvm.md names files, functions and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "real-kvm.md"
FOLDERS = (ROOT, ROOT / "pyvmm", ROOT / "tests")
ROWS = [line for line in PAGE.read_text().splitlines() if re.match(r"\| .*`[a-z_/]+\.py`", line)]


def named(row: str) -> tuple[list[str], list[str]]:
    """Files, and the names that the row's second cell has besides."""
    words = re.findall(r"`([^`]+)`", row)
    files = [word for word in words if word.endswith(".py") and not word.startswith("arch/")]
    names = [word for word in re.findall(r"`([^`]+)`", row.split("|")[2]) if re.fullmatch(r"\w+", word)]
    return files, names


def test_there_are_rows() -> None:
    assert len(ROWS) > 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_what_a_row_names_exists(row: str) -> None:
    files, names = named(row)
    places = []
    folder = ""
    for name in files:
        if "/" not in name and folder:
            name = f"{folder}/{name}"  # `kvm/test_a.py`, `test_b.py`
        place = next((base / name for base in FOLDERS if (base / name).exists()), None)
        assert place is not None, f"there is no {name}"
        places.append(place)
        folder = name.rpartition("/")[0]
    text = "".join(place.read_text() for place in places)
    for name in names:
        assert name in text, f"{name} is in none of {', '.join(files)}"
