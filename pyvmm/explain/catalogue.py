"""All that can be explained, by kind. A kind's entries are made when it is first searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from pyvmm.explain import enumerations, machine_parts, messages, structures
from pyvmm.explain.entry import Entry
from pyvmm.explain.kinds import KINDS

_LOADERS: dict[str, Callable[[], list[Entry]]] = {
    "struct": structures.structures,
    "register": structures.structures,
    "state": structures.states,
    "port": structures.places,
    "address": structures.places,
    "fault": structures.faults,
    "trace": machine_parts.trace_events,
    "device": machine_parts.devices,
    "guid": machine_parts.devices,
    "qmp-command": machine_parts.qmp_commands,
    "qmp-event": machine_parts.qmp_events,
    "exit-status": machine_parts.exit_statuses,
}
"""What makes the entries of the kinds that no enumeration gives."""

_COMPLETE = {
    "message": messages.complete_message,
    "balloon": messages.complete_balloon,
    "service": messages.complete_service,
    "exit": messages.complete_exit,
}


@cache
def _loaded(load: Callable[[], list[Entry]]) -> tuple[Entry, ...]:
    return tuple(load())


@cache
def entries(kind: str) -> tuple[Entry, ...]:
    """Return all entries of a kind."""
    if load := _LOADERS.get(kind):
        return tuple(each for each in _loaded(load) if each.kind == kind)
    made: list[Entry] = []
    for enumeration in enumerations.ENUMERATIONS:
        if enumeration.kind == kind:
            made += enumerations.entries(enumeration)
    if complete := _COMPLETE.get(kind):
        for each in made:
            complete(each)
    return tuple(made)


def every_entry(kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Entry]:
    """Yield the entries of these kinds, or of all."""
    for kind in kinds:
        yield from entries(kind)
