"""Reader of Chrome's trace format: recovers events from the instants, which hold their names and fields unchanged.

Spans and counters are drawn from the same events, and are skipped. An event's thread is known
only if it was drawn on a thread's track. Times count from the first event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pyvmm.analysis.entry import Entry
from pyvmm.files import DECODER, DEPTH_LIMIT
from pyvmm.trace.chrome import GROUPS

WASTED_LIMIT = 16
"""Limit of fruitless parsing, in multiples of the text's length."""

TIME_LIMIT_US = 1e18
"""Largest time in microseconds: thirty thousand years."""


def depth(value: Any) -> int:
    """Return the nesting depth of objects and arrays, at most DEPTH_LIMIT + 1."""
    level, most = [value], 0
    while level and most <= DEPTH_LIMIT:
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        most += 1
    return most


def chrome_entries(text: str) -> Iterator[Entry | None]:
    """Yield the events of an array that may lack its end; None for each element that is no event."""
    threads: dict[str, str] = {}
    for each in _elements(text):
        if not isinstance(each, dict):
            yield None
        elif each.get("ph") == "M":
            _record_thread(each, threads)
        elif each.get("ph") == "i":
            time, name, fields = each.get("ts"), each.get("name"), each.get("args", {})
            if not isinstance(time, (int, float)) or not isinstance(name, str) or not isinstance(fields, dict):
                yield None
                continue
            if not abs(time) < TIME_LIMIT_US or depth(fields) > DEPTH_LIMIT:
                yield None
                continue
            yield Entry(time / 1e6, name, threads.get(str(each.get("tid")), ""), fields)


def _record_thread(element: dict[str, Any], threads: dict[str, str]) -> None:
    """Record a thread's name."""
    arguments = element.get("args")
    if (
        element.get("name") == "thread_name"
        and element.get("pid") == GROUPS["threads"]
        and isinstance(arguments, dict)
    ):
        name = str(arguments.get("name", ""))
        threads[str(element.get("tid"))] = "MainThread" if name == "loop" else name


def _elements(text: str) -> Iterator[Any]:
    """Yield the array's elements: where one is truncated or malformed, the rest of its line is skipped.

    An element may begin at each line, and each may prove malformed only at the end of the text: fruitless parsing
    has a limit, after which the rest is ignored.
    """
    at, end = text.find("[") + 1, len(text)
    budget = WASTED_LIMIT * end
    while budget >= 0:
        while at < end and text[at] in " \t\r\n,":
            at += 1
        if at >= end or text[at] == "]":
            return
        try:
            element, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            element = None
            budget -= error.pos - at if isinstance(error, json.JSONDecodeError) else end - at
            at = text.find("\n", at)
            if at < 0:
                at = end
        yield element
