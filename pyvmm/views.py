"""Lists of memoryviews, as preadv(2) and sendmsg(2) take them: how long they are, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence


def total(views: Sequence[memoryview]) -> int:
    """Return the bytes of all views."""
    return sum(map(len, views))


def after(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """Return the rest of `views` after `done` bytes."""
    for index, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[index + 1 :]]
        done -= len(view)
    return []
