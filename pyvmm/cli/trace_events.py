"""All trace events there are: declared where they happen, and much of that is imported only once a guest runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pyvmm.trace import Event


def complete_event(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Event names, for the shell."""
    return [event.name for event in load_events() if event.name.startswith(incomplete)]


def load_events() -> list[Event]:
    """Import every module that declares events; the events by name. A tenth of a second."""
    import pyvmm.control.server
    import pyvmm.machine.machine
    import pyvmm.machine.services  # noqa: F401
    from pyvmm.trace import events

    return events()
