"""Fixtures of the tests in which FakeGuest plays the guest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests.support`, when run as plain `pytest`

from pyvmm import trace
from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import Recorder


@pytest.fixture(autouse=True)
def traced_values_are_plain(request: pytest.FixtureRequest) -> Iterator[None]:
    """Trace all events during each test here: values must be plain data (a TypeError says which object is not).

    Not during floods, which measure how long a turn of the loop is.
    """
    if "flood" in request.path.name:
        yield
        return

    def check(record: trace.Record) -> None:
        assert len(record.values) == len(record.event.fields), record
        json.dumps(record.values)

    trace.subscribe("*", check)
    yield
    trace.unsubscribe(check)


@pytest.fixture
def guest() -> FakeGuest:
    """A guest that has not made contact yet: one VP, 16 MiB, VMBus 5.3."""
    return FakeGuest()


@pytest.fixture
def device() -> Recorder:
    """A device for the bus, in no slot of it yet."""
    return Recorder()
