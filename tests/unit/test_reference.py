"""The reference pages are what the declarations say, and the diagrams show each transition."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from pyvmm import contain, transitions
from pyvmm.explain.catalogue import entries
from pyvmm.vmbus import states
from tests.support.reference import diagram
from tests.support.reference.pages import BOOK, MACHINES, made

FILES = made()


@pytest.mark.parametrize("name", FILES)
def test_a_page_is_what_the_declarations_say(name: str) -> None:
    assert (BOOK / name).read_text() == FILES[name], "`make reference` writes it anew"


def test_no_other_page_lies_there() -> None:
    assert {f"reference/{path.name}" for path in (BOOK / "reference").iterdir()} <= FILES.keys()


@pytest.mark.parametrize("kind", ["message", "struct", "trace", "qmp-command", "qmp-event", "exit-status", "msr"])
def test_each_declaration_has_its_row(kind: str) -> None:
    text = "\n".join(FILES.values())
    for each in entries(kind):
        assert each.name in text or each.title in text or each.text in text, each


@pytest.mark.parametrize("name", MACHINES)
def test_a_diagram_is_an_image_with_each_state_and_number(name: str) -> None:
    _, table, _ = MACHINES[name]
    texts = [each.text for each in ElementTree.fromstring(diagram.svg(table)).iter() if each.text]
    for state in table:
        assert diagram.name_of(state) in texts
    numbers = {int(found[0]) for text in texts if (found := re.match(r"\d+\b", text))}
    assert numbers == set(range(1, len(diagram.drawn(table)) + 1))


@pytest.mark.parametrize("name", MACHINES)
def test_each_state_of_a_table_is_known_and_can_be_reached(name: str) -> None:
    _, table, _ = MACHINES[name]
    assert {new for nexts in table.values() for new in nexts} <= table.keys()
    reached = {next(iter(table))}
    for _ in table:
        reached |= {new for old in reached for new in table[old]}
    assert reached == table.keys()


def test_a_transition_that_is_not_listed_fails_where_tests_run(monkeypatch: pytest.MonkeyPatch) -> None:
    transitions.check(states.CHANNEL, states.Offered, states.Opening)
    with pytest.raises(AssertionError, match="not in the table"):
        transitions.check(states.CHANNEL, states.Offered, states.Open)
    monkeypatch.setattr(contain, "strict", False)
    transitions.check(states.CHANNEL, states.Offered, states.Open)


def test_links_within_the_pages_lead_somewhere() -> None:
    for name, text in FILES.items():
        for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            page = (
                f"reference/{target}"
                if target and not target.startswith("..")
                else target.removeprefix("../") or name
            )
            assert page in FILES, (name, target)
            assert not anchor or re.search(rf"^#+ {anchor}$", FILES[page], re.IGNORECASE | re.MULTILINE), (
                name,
                anchor,
            )
