"""Lets the tests import `tests.support` when run as plain `pytest`."""

from __future__ import annotations
