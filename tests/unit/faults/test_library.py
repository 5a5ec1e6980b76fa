"""The library of named faults: whole, documented, and the same in docs/faults.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.faults.complete import complete
from pyvmm.faults.describe import WIDTH, describe, library_table, points_table
from pyvmm.faults.library import LIBRARY
from pyvmm.faults.parse import parse_rules
from pyvmm.faults.points import POINTS

DOCS = Path(__file__).parents[3] / "docs" / "faults.md"


def test_there_are_enough() -> None:
    assert len(LIBRARY) >= 40
    assert {rule.point for name in LIBRARY for rule in parse_rules(name)} == set(POINTS) - {"index.in"}


@pytest.mark.parametrize("name", LIBRARY)
def test_each_has_rules_and_says_what_it_breaks(name: str) -> None:
    fault = LIBRARY[name]
    rules = parse_rules(name)
    assert rules and all(rule.fault == name for rule in rules)
    assert [parse_rules(rule.text())[0].text() for rule in rules] == [rule.text() for rule in rules]
    assert fault.breaks and ":" in fault.against and "|" not in fault.breaks + fault.against
    assert name == name.lower() and name.replace("-", "").isalnum()


def test_the_docs_have_the_tables() -> None:
    """`python -m pyvmm.faults.describe` prints them."""
    text = DOCS.read_text()
    assert points_table() in text and library_table() in text


def test_the_help_fits_a_terminal_and_names_all() -> None:
    text = describe()
    assert all(len(line) <= WIDTH + 2 for line in text.splitlines())
    for name in (*LIBRARY, *POINTS):
        assert f"  {name} " in text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h", ["help", "heartbeats-lost", "heartbeat-answers-lost", "hot-add-lost"]),
        ("torndown-w", ["torndown-withheld"]),
        ("message.o", ["message.out:"]),
        ("message.out:d", ["message.out:drop", "message.out:delay", "message.out:duplicate"]),
        ("message.out:drop,ty", ["message.out:drop,type="]),
        ("message.out:drop,type=OPEN", ["message.out:drop,type=OPEN_RESULT"]),
        ("message.out:drop,type=OFFER,channel=hv", ["message.out:drop,type=OFFER,channel=hv-balloon"]),
        ("message.out:change,to.v", ["message.out:change,to.vp="]),
        ("index.in:change,word=w", ["index.in:change,word=write"]),
        ("torndown-withheld,o", ["torndown-withheld,once"]),
        ("nonsense,", []),
        ("nonsense:d", []),
    ],
)
def test_rules_are_completed(text: str, found: list[str]) -> None:
    completed = complete(text)
    assert [each for each in found if each not in completed] == []
    assert all(each.startswith(text) for each in completed) and (found or not completed)
