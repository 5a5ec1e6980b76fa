"""Errors of a test that waits for its guest."""

from __future__ import annotations


class TimedOut(AssertionError):
    """The guest did not do within its time what was waited for."""


class GuestEnded(AssertionError):
    """The machine ended, or the guest restarted, while a test waited for it."""
