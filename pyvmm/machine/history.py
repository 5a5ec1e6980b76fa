"""The guest's memory pressure over time: its balloon driver's reports with the guest's size at that moment."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

from pyvmm.qapi import PressureSample

LIMIT = 3600
"""Samples kept: an hour, as drivers report at most once a second. Some 150 bytes each."""


class Sample(NamedTuple):
    """One pressure report. `time` in seconds of the wall clock, to compare with other logs; sizes in bytes."""

    time: float
    available: int
    committed: int
    actual: int
    out: int  # in the balloon

    def as_dict(self) -> PressureSample:
        return {
            "time": round(self.time, 3),
            "available": self.available,
            "committed": self.committed,
            "actual": self.actual,
            "out": self.out,
        }


class PressureHistory:
    """The last samples of a guest, oldest first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._samples: deque[Sample] = deque(maxlen=limit)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def last(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def add(self, sample: Sample) -> None:
        """Append `sample`; drop the oldest one if there is no room."""
        self._samples.append(sample)

    def newest(self, count: int) -> list[Sample]:
        """Return at most the last `count` samples, oldest first."""
        return list(islice(self._samples, max(0, len(self._samples) - max(count, 0)), None))

    def since(self, time: float) -> list[Sample]:
        """Return the samples later than `time`, oldest first."""
        found = []
        for sample in reversed(self._samples):
            if sample.time <= time:
                break
            found.append(sample)
        return found[::-1]
