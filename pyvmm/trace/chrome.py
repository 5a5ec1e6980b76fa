"""Chrome's trace event format, which https://ui.perfetto.dev and chrome://tracing show.

Source: "Trace Event Format" (the JSON Array Format: an array whose closing bracket may be missing).

A process is a group of tracks (threads, channels, devices), a thread in it one track. States become spans that last
until the next state, requests to the guest spans that end with its answer, memory figures counters. Each event is
also an instant with its fields as arguments, which `chrome_read` reads back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from pyvmm.trace import Record
from pyvmm.trace.formats import encode_value
from pyvmm.trace.tracks import Track, track_of
from pyvmm.trace.views import SPAN_BEGINS, SPAN_ENDS, STATES

GROUPS = {"threads": 1, "channels": 2, "devices": 3}
_MEMORY_FIELDS = ("actual", "target", "resident", "available", "committed")
_MIB = 1 << 20

_STATES = {"machine.state": "state", "vmbus.channel_state": "new"}
"""State changes outside devices: the event, and its field with the name of the new state."""


class ChromeEncoder:
    """Encodes records, or a file's events, as elements of the array. Times are microseconds since the first event."""

    def __init__(self) -> None:
        self._tracks: dict[Track, int] = {}
        self._heads: dict[tuple[str, Track], str] = {}  # the constant part of an event's instants
        self._named: set[Track] = set()
        self._states: dict[Track, str] = {}
        self._requests: dict[str, int] = {}  # open requests by kind: their span's id
        self._next_id = 1
        self._start: float | None = None
        self._last = 0.0
        self._written = False

    def head(self) -> str:
        return "[\n"

    def encode(self, record: Record) -> str:
        return self.event(
            record.time,
            record.event.name,
            record.thread,
            dict(zip(record.event.fields, record.values, strict=False)),
        )

    def event(self, time: float, name: str, thread: str, fields: Mapping[str, Any]) -> str:
        """Encode one event as elements with commas between them."""
        if self._start is None:
            self._start = time
        self._last = stamp = round((time - self._start) * 1e6, 1)
        made: list[dict[str, Any]] = []
        track = track_of(name, thread, fields)
        head = self._heads.get((name, track))
        if head is None:
            constant = self._place(track, made) | {"name": name, "cat": track.group, "ph": "i", "s": "t"}
            head = self._heads[name, track] = _dump(constant).removesuffix("}")
        if name in STATES or name in SPAN_BEGINS or name in SPAN_ENDS or name in _STATES or name == "machine.memory":
            self._besides(track, self._place(track, made) | {"ts": stamp}, name, fields, made)
        # The event itself: nearly all of a trace, so formatted by hand.
        arguments = [
            f"{quote(key)}: {value if type(value) is int else encode_value(value)}" for key, value in fields.items()
        ]
        return self._join([*map(_dump, made), f'{head}, "ts": {stamp}, "args": {{{", ".join(arguments)}}}}}'])

    def _besides(
        self, track: Track, base: dict[str, Any], name: str, fields: Mapping[str, Any], made: list[dict[str, Any]]
    ) -> None:
        """Encode an event's other meanings: a change of state, a request's begin or end, a figure, a name."""
        if name == "vmbus.channel_state":
            self._name_channel(track, f"{track.name} {fields.get('name', '')}", made)
        state = STATES.get(name) or _STATES.get(name)
        if state is not None:
            self._change(track, str(fields.get(state, "?")), base["ts"], made)
        elif name == "machine.memory":
            counted = {key: fields[key] / _MIB for key in _MEMORY_FIELDS if isinstance(fields.get(key), int)}
            made.append(base | {"name": "memory, MiB", "ph": "C", "args": counted})
        elif name in SPAN_BEGINS:
            span = SPAN_BEGINS[name].span
            self._requests[span] = self._next_id
            made.append(base | {"name": span, "cat": "request", "ph": "b", "id": self._next_id, "args": fields})
            self._next_id += 1
        elif name in SPAN_ENDS:
            span, last = SPAN_ENDS[name].span, SPAN_ENDS[name].when
            if span in self._requests and (last is None or (fields.get(last[0]) or 0) == last[1]):
                number = self._requests.pop(span)
                made.append(base | {"name": span, "cat": "request", "ph": "e", "id": number, "args": fields})

    def tail(self) -> str:
        """Close the open spans, and the array."""
        made: list[dict[str, Any]] = []
        for track, state in self._states.items():
            made.append(self._place(track, made) | {"name": state, "ph": "E", "ts": self._last})
        return self._join(map(_dump, made)) + "\n]\n"

    def _change(self, track: Track, state: str, stamp: float, made: list[dict[str, Any]]) -> None:
        """End the old state's span and begin the new one's, on a track beside the instants'."""
        beside = Track(track.group, f"{track.name}: state")
        place = self._place(beside, made) | {"ts": stamp}
        if beside in self._states:
            made.append(place | {"name": self._states[beside], "ph": "E"})
        self._states[beside] = state
        made.append(place | {"name": state, "cat": "state", "ph": "B"})

    def _name_channel(self, track: Track, name: str, made: list[dict[str, Any]]) -> None:
        """Name a channel's track after its device, which only this event gives."""
        if track not in self._named:
            self._named.add(track)
            made.append(self._place(track, made) | {"ph": "M", "name": "thread_name", "args": {"name": name}})

    def _place(self, track: Track, made: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a track's `pid` and `tid`; a new track is named first."""
        pid = GROUPS[track.group]
        if track not in self._tracks:
            if not any(known.group == track.group for known in self._tracks):
                made.append({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": track.group}})
                made.append(
                    {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
                )
            self._tracks[track] = len(self._tracks) + 1
            where = {"ph": "M", "pid": pid, "tid": self._tracks[track]}
            made.append(where | {"name": "thread_name", "args": {"name": track.name}})
        return {"pid": pid, "tid": self._tracks[track]}

    def _join(self, elements: Iterable[str]) -> str:
        text = ",\n".join(elements)
        if text and self._written:
            text = ",\n" + text
        self._written = self._written or bool(text)
        return text


def _dump(element: dict[str, Any]) -> str:
    return json.dumps(element, default=str)
