"""Runs commands in the guest: joins the agent's protocol (agent_protocol.py) to the machine's second serial port.

A command requested before the agent is ready is queued until then. All methods run on the loop's thread.

The time limit of a command is enforced here, in guest time: the guest's own clock goes on while the machine is
paused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyvmm.contain import contained
from pyvmm.errors import ConfigError
from pyvmm.loop import Timer, Timers
from pyvmm.machine.agent_protocol import (
    AgentClient,
    Exited,
    Garbled,
    Lost,
    Output,
    Ready,
    Refused,
    SessionsOnly,
    quoted,
)
from pyvmm.trace import event

ready = event("agent.ready", "kernel {release}")
sent = event("agent.command", "#{id} {command}")
exited = event("agent.exited", "#{id} status {status}")
refused = event("agent.refused", "{text}")


COMMANDS_LIMIT = 64
"""Limit of commands queued or running. It bounds the host memory used when a guest answers none of them."""
TIMED_OUT = 124
"""Exit status of a command that exceeded its time limit, as timeout(1) and the agent report it."""
KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(slots=True, eq=False)
class _Command:
    text: str
    seconds: int
    output: Callable[[str, bytes], None]
    done: Callable[[int | None], None]
    limit: Timer | None = None
    timed_out: bool = False

    def cancel_limit(self) -> None:
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None


class GuestAgent:
    """Client of the guest's agent. `send(data)` queues bytes for the guest's port; `received(data)` parses the
    guest's output. `timers` are guest time."""

    def __init__(self, send: Callable[[bytes], int], timers: Timers) -> None:
        self.release = ""
        self.starts = 0  # how often it has reported ready
        self.sessions_only = False  # the guest runs a system of its own, and the program for sessions in it
        self.on_sessions_only: Callable[[], None] = lambda: None
        self._send = send
        self._timers = timers
        self._client = AgentClient()
        self._waiting: deque[_Command] = deque()
        self._running: dict[int, _Command] = {}
        self._size: tuple[int, int] | None = None  # of the console's terminal, if it has one

    @property
    def ready(self) -> bool:
        """Whether the guest's agent has reported ready."""
        return self._client.ready

    @property
    def busy(self) -> int:
        """Return the number of commands that run in the guest or wait for it."""
        return len(self._waiting) + len(self._running)

    def execute(
        self,
        command: str,
        output: Callable[[str, bytes], None],
        done: Callable[[int | None], None],
        *,
        seconds: int = 0,
    ) -> Callable[[], None]:
        """Run a shell command in the guest. Calls `output("out" | "err", data)` as it writes, then `done(status)`;
        None if the guest restarted before the command ended. Raises ConfigError if the command is too long.

        `seconds` is its time limit; 0 means no limit. A command that exceeds it ends with status TIMED_OUT.

        Returns a function that cancels: a queued command is not sent, a running one is killed, and there are no
        further calls.
        """
        if self.sessions_only and not self.ready:
            raise ConfigError("the guest runs the system of its disk, without pyvmm's agent: use `pyvmm exec`")
        quoted(command)  # raises now what would be raised when a queued command is sent
        if len(self._waiting) + len(self._running) >= COMMANDS_LIMIT:
            raise ConfigError(f"{COMMANDS_LIMIT} commands wait for the guest already: `pyvmm kill` or reset it")
        wanted = _Command(command, seconds, output, done)
        self._waiting.append(wanted)
        self._submit()
        return lambda: self._cancel(wanted)

    def _cancel(self, command: _Command) -> None:
        command.output, command.done = lambda stream, data: None, lambda status: None
        if command in self._waiting:
            self._waiting.remove(command)
        for number, each in self._running.items():
            if each is command:
                self._send(self._client.kill(number, "KILL"))

    @contained("agent")
    def resize(self, rows: int, columns: int) -> None:
        """Send the size of the console's terminal to the guest, now and after each restart. Older images refuse the
        request and keep their default size.
        """
        if self._size != (rows, columns):
            self._size = rows, columns
            self._send_size()

    def _send_size(self) -> None:
        if self._size is not None and self._client.ready:
            self._send(self._client.size(*self._size))

    def received(self, data: bytes) -> None:
        """Parse bytes that the guest wrote to its second serial port."""
        for message in self._client.feed(data):
            match message:
                case Ready(release):
                    self.release = release
                    self.starts += 1
                    if ready.on:
                        ready(release)
                    self._send_size()
                    self._submit()
                case SessionsOnly():
                    self.sessions_only = True
                    self.on_sessions_only()
                case Output(number, stream, piece):
                    self._running[number].output(stream, piece)
                case Exited(number, status):
                    if exited.on:
                        exited(number, status)
                    command = self._running.pop(number)
                    command.cancel_limit()
                    command.done(TIMED_OUT if command.timed_out else status)
                case Lost(number):
                    command = self._running.pop(number)
                    command.cancel_limit()
                    command.done(None)
                case Refused(text):
                    if refused.on:
                        refused(text)
                case Garbled(error):
                    if refused.on:
                        refused(str(error))

    def reset(self) -> None:
        """Handle a machine reset: running commands are lost; queued ones stay queued for the new guest."""
        running, self._running = self._running, {}
        self._client = AgentClient()
        self.sessions_only = False
        for command in running.values():
            command.cancel_limit()
            command.done(None)

    def _submit(self) -> None:
        while self._client.ready and self._waiting:
            command = self._waiting.popleft()
            number, request = self._client.run(command.text)
            self._running[number] = command
            if command.seconds:
                command.limit = self._timers.after(command.seconds, partial(self._on_time_limit, number))
            if sent.on:
                sent(number, command.text)
            self._send(request)

    def _on_time_limit(self, number: int) -> None:
        """Handle an expired time limit: send SIGTERM, then SIGKILL if the command does not end."""
        command = self._running.get(number)
        if command is not None:
            self._send(self._client.kill(number, "KILL" if command.timed_out else "TERM"))
            command.limit = (
                None if command.timed_out else self._timers.after(KILL_AFTER, partial(self._on_time_limit, number))
            )
            command.timed_out = True
