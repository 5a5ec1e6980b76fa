"""The monitor's ways into the guest: commands over the serial port, connections over Hyper-V sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvmm.errors import HostError, PyvmmError

if TYPE_CHECKING:
    import socket

    from pyvmm.machine.machine import Machine
    from pyvmm.machine.sessions import Sessions


class GuestAccess:
    """All methods run on the loop's thread, after the machine's services have started."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._sessions: Sessions | None = None  # from the first one on

    def execute(self, command: str, seconds: int, done: Callable[[dict[str, Any] | HostError], None]) -> None:
        """Run a shell command in the guest and collect its output. Raises ConfigError."""
        from pyvmm.machine.execute import execute

        execute(self._machine.agent, self._machine.guest_time, command, seconds, done)

    def connect(self, port: int, attach: Callable[[], socket.socket | None], failed: Callable[[str], None]) -> None:
        """Connect to a port of the guest. `attach` returns the connection when the guest has accepted, None if it is
        gone; else `failed(reason)` is called.
        """
        self._machine.services.vsock(self._machine.loop).connect(port, attach, failed)

    def start_sessions(self, done: Callable[[int | PyvmmError], None], *, only_if_started: bool = False) -> None:
        """Start the guest's program for sessions, unless it runs; `done` gets its port, or why there is none.

        `only_if_started`: leave it at that if none was started before.
        """
        if self._sessions is None:
            from pyvmm.machine.sessions import Sessions

            self._sessions = Sessions(self._machine.agent, self._machine.guest_time)
        self._sessions.start(done, only_if_started=only_if_started)
