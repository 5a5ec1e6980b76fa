"""Validation of time limits and periods, in seconds, that users and programs give."""

from __future__ import annotations

from pyvmm.errors import ConfigError

LONGEST = 10 * 366 * 86400
"""The largest time limit, ten years: poll(2) and socket time-outs do not take infinity."""


def check_seconds(value: float, name: str = "timeout") -> float:
    """Return `value`. Raises ConfigError for NaN, negative numbers and those beyond LONGEST, infinity too."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number <= LONGEST:
        raise ConfigError(f"{name} {str(value)[:40]}: give seconds, from 0 to {LONGEST} (ten years)")
    return number
