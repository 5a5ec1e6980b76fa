"""x-fault-add, x-fault-remove and x-query-faults."""

from __future__ import annotations

import pytest

from pyvmm.control.commands import dispatch
from pyvmm.control.errors import ControlError, DeviceNotFound
from tests.support.fake_machine import FakeMachine


def test_faults_are_added_listed_and_removed() -> None:
    machine = FakeMachine()
    assert dispatch(machine, "x-fault-add", {"rule": "eom-lost"}) == {"id": 7}
    assert dispatch(machine, "x-query-faults", {}) == [
        {"id": 7, "rule": "eom-lost", "hits": 2, "seen": 3, "failures": 0}
    ]
    assert dispatch(machine, "x-fault-remove", {"id": 7}) == {}


def test_a_rule_or_number_that_is_none_is_refused_with_the_reason() -> None:
    with pytest.raises(ControlError, match="'nonsense' is no fault"):
        dispatch(FakeMachine(), "x-fault-add", {"rule": "nonsense"})
    with pytest.raises(DeviceNotFound, match="no fault has the number 8"):
        dispatch(FakeMachine(), "x-fault-remove", {"id": 8})
