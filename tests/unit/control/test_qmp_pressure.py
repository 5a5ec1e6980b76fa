"""x-query-pressure and x-autosize."""

from __future__ import annotations

import pytest

from pyvmm.control.commands import dispatch
from pyvmm.control.errors import ControlError
from tests.support.fake_machine import MIB, FakeMachine


def test_pressure_comes_with_the_newest_samples() -> None:
    reply = dispatch(FakeMachine(), "x-query-pressure", {})
    assert (reply["demand"], reply["current"]) == (100 * MIB, 512 * MIB)
    assert len(reply["samples"]) == 1


def test_the_samples_may_be_counted_or_left_out() -> None:
    assert dispatch(FakeMachine(), "x-query-pressure", {"count": 0})["samples"] == []
    with pytest.raises(ControlError, match="expects a number of samples"):
        dispatch(FakeMachine(), "x-query-pressure", {"count": -1})


def test_automatic_sizing_is_held_and_let_go() -> None:
    machine = FakeMachine()
    dispatch(machine, "x-autosize", {"enable": False})
    dispatch(machine, "x-autosize", {"enable": True})
    assert machine.automatic == [False, True]
