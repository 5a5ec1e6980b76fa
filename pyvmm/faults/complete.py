"""Completion of a fault rule on the command line: fault names and points, then actions, then keys."""

from __future__ import annotations

from pyvmm.faults import layouts
from pyvmm.faults.library import LIBRARY
from pyvmm.faults.parse import COMMON, HELP, action_keys
from pyvmm.faults.points import POINTS, WORDS


def complete(text: str) -> list[str]:
    """Return what `text` can become: the whole rule so far with its last word complete."""
    before, comma, last = text.rpartition(",")
    if not comma:
        return _heads(text)
    name, equals, value = last.partition("=")
    point, _, action = before.split(",")[0].partition(":")
    if point not in POINTS:
        point, action = LIBRARY[point].rules[0].split(",")[0].split(":") if point in LIBRARY else ("", "")
    if point not in POINTS:
        return []
    words = _values(point, name) if equals else _keys(point, action)
    prefix = f"{before},{name}=" if equals else f"{before},"
    return [prefix + word for word in words if word.startswith(value if equals else name)]


def _heads(text: str) -> list[str]:
    point, colon, action = text.partition(":")
    if colon:
        actions = POINTS[point].actions if point in POINTS else ()
        return [f"{point}:{each}" for each in actions if each.startswith(action)]
    return [each for each in (HELP, *LIBRARY, *(f"{name}:" for name in POINTS)) if each.startswith(text)]


def _keys(point: str, action: str) -> list[str]:
    table = POINTS[point]
    keys = [f"{each}=" for each in (*([table.kind] if table.kind else []), *table.fields, *action_keys(action))]
    keys += ["once" if each == "once" else f"{each}=" for each in COMMON]
    return [*keys, *(f"to.{each}=" for each in table.settable)] if action in ("change", "insert") else keys


def _values(point: str, name: str) -> list[str]:
    if name == POINTS[point].kind:
        return layouts.message_names(point)
    if name == "channel":
        return [layouts.BALLOON, *layouts.IC_CHANNELS]
    return list(WORDS.get(name, ()))
