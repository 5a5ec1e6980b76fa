"""Fixtures of the tests in which FakeGuest plays the guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests.support`, when run as plain `pytest`

from tests.support.fake_guest import FakeGuest
from tests.support.recorder_device import Recorder


@pytest.fixture
def guest() -> FakeGuest:
    """A guest that has not made contact yet: one VP, 16 MiB, VMBus 5.3."""
    return FakeGuest()


@pytest.fixture
def device() -> Recorder:
    """A device for the bus, in no slot of it yet."""
    return Recorder()
