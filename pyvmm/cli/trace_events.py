"""All trace events there are: declared where they happen, and much of that is imported only once a guest runs."""

from __future__ import annotations

from pyvmm.trace import Event, events


def load_events() -> list[Event]:
    """Import every module that declares events; the events by name. A tenth of a second."""
    import pyvmm.control.server
    import pyvmm.machine.machine
    import pyvmm.machine.services  # noqa: F401

    return events()
