"""What all tests share: `tests.support` can be imported, and Linux boots come last."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests.support`, when run as plain `pytest`


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mistake shows before Linux has booted. The order within each half stays."""
    items.sort(key=lambda item: item.get_closest_marker("boot") is not None)
