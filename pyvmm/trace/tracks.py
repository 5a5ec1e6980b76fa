"""Assignment of events to the tracks of a drawn trace: threads, channels and devices.

An event that names a channel belongs to it, whichever thread it happened on; one of a device's package belongs to the
device; the rest to their thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pyvmm.trace.views import TRACKS


class Track(NamedTuple):
    """A track of the drawn trace. `group` is `threads`, `channels` or `devices`."""

    group: str
    name: str


@lru_cache(1024)
def package(event: str) -> str:
    """Return `balloon` for `balloon.finished`, `vmbus` for `vmbus_post_msg`."""
    if "." in event:
        return event.partition(".")[0]
    if event.startswith("hv_balloon_"):
        return "hv_balloon"
    return event.partition("_")[0]


def track_of(event: str, thread: str, fields: Mapping[str, Any]) -> Track:
    """Return the track of an event by its name, thread and fields."""
    if "chan_id" in fields:
        return Track("channels", f"channel #{fields['chan_id']}")
    origin = package(event)
    if origin in TRACKS:
        return Track("devices", TRACKS[origin] or str(fields.get("name", origin)))
    return Track("threads", "loop" if thread == "MainThread" else thread)
