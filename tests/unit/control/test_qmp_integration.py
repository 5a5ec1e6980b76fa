"""QMP and HMP commands for the guest's integration services."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.control.commands import dispatch
from pyvmm.control.errors import ControlError
from pyvmm.control.hmp import execute
from pyvmm.control.protocol import DeferredReply
from pyvmm.control.schema import schema
from tests.support.fake_machine import FakeMachine


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def run(machine: FakeMachine, name: str, **arguments: Any) -> Any:
    return dispatch(machine, name, {key.replace("_", "-"): value for key, value in arguments.items()})  # type: ignore[arg-type]


def test_values_are_set_queried_and_deleted(machine: FakeMachine) -> None:
    assert run(machine, "x-kvp-set", key="color", value="blue") == {}
    assert run(machine, "x-query-kvp")["external"] == {"color": "blue"}
    run(machine, "x-kvp-set", key="color")
    assert run(machine, "x-query-kvp")["external"] == {}
    with pytest.raises(ControlError, match="no value"):
        run(machine, "x-kvp-set", key="color")


def test_freeze_and_thaw_answer_when_the_guest_does(machine: FakeMachine) -> None:
    for name, arguments in (("x-vss-freeze", {"seconds": 30}), ("x-vss-freeze", {}), ("x-vss-thaw", {})):
        assert isinstance(run(machine, name, **arguments), DeferredReply)
    assert machine.calls == ["freeze 30", "freeze 60", "thaw"]


def test_keys_are_pressed_by_name_and_number(machine: FakeMachine) -> None:
    keys = [{"type": "qcode", "data": "ctrl"}, {"type": "number", "data": 0x1E}]
    run(machine, "send-key", keys=keys, hold_time=50)
    execute(machine, "sendkey ctrl-alt-delete")  # type: ignore[arg-type]
    execute(machine, "sendkey 0x1e 20")  # type: ignore[arg-type]
    assert machine.calls == [
        "press ['ctrl', 30] 0.05",
        "press ['ctrl', 'alt', 'delete'] 0.1",
        "press [30] 0.02",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys": "ctrl"},
        {"keys": [1]},
        {"keys": [{}]},
        {"keys": [{"type": "qcode", "data": 1}]},
        {"keys": [{"type": "number", "data": 0}]},
        {"keys": [{"type": "number", "data": 256}]},
        {"keys": [{"type": "number", "data": True}]},
        {"keys": [], "hold_time": 0},
        {"keys": [], "hold_time": 60_001},
        {},
    ],
)
def test_wrong_keys_are_refused(machine: FakeMachine, arguments: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        run(machine, "send-key", **arguments)


@pytest.mark.parametrize("line", ["sendkey 0xzz", "sendkey a b", "sendkey", "sendkey a 99999999"])
def test_wrong_keys_on_a_line_are_refused(machine: FakeMachine, line: str) -> None:
    try:
        answer = execute(machine, line)  # type: ignore[arg-type]
    except ControlError as error:
        answer = str(error)
    assert answer and machine.calls == []


def test_the_schema_shows_a_list_of_keys() -> None:
    rows = {row["name"]: row for row in schema()}
    assert {member["name"]: member["type"] for member in rows["q_obj_send-key-arg"]["members"]}["keys"] == "[any]"
