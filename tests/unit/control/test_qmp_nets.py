"""Network cards in the monitor."""

from __future__ import annotations

import pytest

from pyvmm.control import hmp
from pyvmm.control.commands import dispatch
from pyvmm.control.errors import ControlError, DeviceNotFound
from tests.support.fake_machine import MAC, FakeMachine


def test_the_cable_is_pulled_and_plugged() -> None:
    machine = FakeMachine()
    assert dispatch(machine, "set_link", {"name": "netvsc", "up": False}) == {}
    assert dispatch(machine, "x-query-nets", {})[0]["link"] == "down"
    assert hmp.execute(machine, "set_link netvsc on") == ""
    assert "link: up" in hmp.execute(machine, "info network")


def test_unknown_cards_and_bad_words_are_refused() -> None:
    machine = FakeMachine()
    for command in ("set_link", "query-rx-filter"):
        with pytest.raises(DeviceNotFound, match="net7"):
            dispatch(machine, command, {"name": "net7", **({"up": True} if command == "set_link" else {})})
    assert hmp.execute(machine, "set_link netvsc maybe").startswith("Error: Parameter 'up' expects")
    with pytest.raises(ControlError):
        dispatch(machine, "set_link", {"name": "netvsc", "up": "on"})


def test_filters_are_those_of_one_card_or_all() -> None:
    machine = FakeMachine()
    assert [each["main-mac"] for each in dispatch(machine, "query-rx-filter", {})] == [MAC]
    assert len(dispatch(machine, "query-rx-filter", {"name": "netvsc"})) == 1
