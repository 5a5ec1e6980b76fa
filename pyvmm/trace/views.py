"""Views of a device's events in a drawn trace: its track, its states, its requests with their answers.

A device declares its view beside its events; Chrome traces and reports use these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyvmm.trace.sequences import Entry, Sequence

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """An event and its answer, as a timed exchange. `key` names fields that both share (begin's : end's where they
    differ), `when` a field and value that mark the last answer. With `newest` a new begin replaces a pending one,
    which will have no answer. With `single` there is one exchange at a time, of one or more begins
    and a last answer, and the device's `given_up` events end it without. `span` names the exchange in a picture.
    """

    title: str
    begin: str
    end: str
    key: tuple[str, ...] = ()
    when: tuple[str, int] | None = None
    begin_when: tuple[str, int] | None = None
    newest: bool = False
    single: bool = False
    span: str = ""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """The view of one device. `packages` are the first parts of its events' names; `track` is None if their
    field `name` gives it.

    `states`: event that ends one state and begins another, and its field with the new one's name. `given_up`: events,
    with values of their fields, after which open requests get no answer. `sequences`: the arrows of a report, from a
    trace's entries and the time of the first.
    """

    packages: tuple[str, ...]
    track: str | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    given_up: tuple[tuple[str, Values], ...] = ()
    sequences: Callable[[Iterable[Entry], float], list[Sequence]] | None = None


VIEWS: list[DeviceView] = []
"""All views declared by the modules imported so far."""

TRACKS: dict[str, str | None] = {}
STATES: dict[str, str] = {}
SPAN_BEGINS: dict[str, Pair] = {}
SPAN_ENDS: dict[str, Pair] = {}
"""The views by package, and by event."""


def device_view(view: DeviceView) -> DeviceView:
    """Declare how a device is drawn."""
    VIEWS.append(view)
    TRACKS.update(dict.fromkeys(view.packages, view.track))
    STATES.update(view.states)
    SPAN_BEGINS.update({pair.begin: pair for pair in view.pairs if pair.span})
    SPAN_ENDS.update({pair.end: pair for pair in view.pairs if pair.span})
    return view
