"""Starts the guest's program for sessions when the host first wants one, by the agent on the serial port.

Once it listens there is no more to do than to connect to its port; after a reset of the guest it is started anew.
A guest that boots the system of its disk has no agent: its init has started the program, and says so on that port.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.guest_text import one_line
from pyvmm.machine.execute import execute
from pyvmm.session_protocol import PORT

if TYPE_CHECKING:
    from pyvmm.loop import Timers
    from pyvmm.machine.agent import GuestAgent

START_SECONDS = 30
"""Guest time for the guest to load its modules and start the program; the guest may still boot."""

Done = Callable[[int | PyvmmError], None]
"""Gets the guest's port; a ConfigError if the guest cannot have sessions, a HostError if it does not answer."""


class Sessions:
    """The guest's program for sessions. `timers` are guest time."""

    def __init__(self, agent: GuestAgent, timers: Timers) -> None:
        self._agent = agent
        self._timers = timers
        self._started = -1  # the agent's count of starts when the program was started
        self._wanted = False  # since the machine was made
        self._waiting: list[Done] = []
        agent.on_sessions_only = lambda: self._tell(PORT)

    def start(self, done: Done, *, only_if_started: bool = False) -> None:
        """Start the program unless it runs, and call `done` with its port, or the reason why it does not."""
        if self._agent.sessions_only or (self._agent.ready and self._started == self._agent.starts):
            done(PORT)
            return
        if only_if_started and not self._wanted:
            done(ConfigError("no session was wanted of this guest yet"))
            return
        self._wanted = True
        self._waiting.append(done)
        if len(self._waiting) > 1:
            return
        command = f"[ -f /etc/pyvmm/vsock ] || exit 126; /bin/sh /etc/pyvmm/vsock {PORT} 2>&1"
        try:
            execute(self._agent, self._timers, command, START_SECONDS, self._ended)
        except ConfigError as error:  # too many commands wait
            self._tell(error)

    def _ended(self, result: dict[str, Any] | HostError) -> None:
        if isinstance(result, HostError):
            self._tell(result)
        elif result["status"] == 0:
            self._started = self._agent.starts
            self._tell(PORT)
        elif result["status"] == 126:
            self._tell(ConfigError("the guest's initramfs is not pyvmm's, or an older pyvmm made it"))
        else:
            text = result["stdout"].decode("utf-8", "replace")
            reason = one_line(text.strip()) or f"the guest's program for sessions ended with {result['status']}"
            self._tell(ConfigError(reason))

    def _tell(self, result: int | PyvmmError) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(result)
