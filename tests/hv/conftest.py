"""Tests of Linux's drivers, by pyvmm's own pytest plugin (docs/testbed.md)."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("pyvmm"):
        raise pytest.UsageError("tests/hv needs pyvmm's pytest plugin: pip install -e '.[dev]', and no -p no:pyvmm")
