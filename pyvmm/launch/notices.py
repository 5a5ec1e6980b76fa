"""Prints notices about a running guest on stderr: panics, a crash kernel, a missing agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvmm.hyperv.crash import panic_line
from pyvmm.launch.outputs import try_print_message

if TYPE_CHECKING:
    from pyvmm.machine import Machine

LINES = 20
"""Maximum number of lines: a guest can cause any number of notices."""

AGENT_FACTOR = 3
"""Multiple of `config.silence` after which a missing agent is reported, if there is a command to run."""


class Notices:
    """Prints a machine's notable events, one line each. `panic_printed` is the line of the last panic printed."""

    def __init__(self, machine: Machine, *, waits_for_agent: bool) -> None:
        self.panic_printed = ""
        self.panicked = False  # since the guest's last reset
        self._machine = machine
        self._left = LINES
        machine.monitor.on_event(self._on_event)
        if waits_for_agent:
            machine.guest_time.after(AGENT_FACTOR * machine.config.silence, self._check_agent)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "GUEST_PANICKED":
                self.panicked = True
                line = panic_line(str(data.get("x-text", "")))
                if data["action"] == "run" and line != self.panic_printed:  # else printed at the machine's end
                    self.panic_printed = line
                    self._print(f"guest panicked: {line}")
            case "GUEST_CRASHLOADED":
                self._print("the guest's crash kernel (kdump) runs now: the machine continues")
            case "RESET":
                self.panicked = False
            case "X_NOTICE":
                self._print(str(data["text"]))

    def _print(self, line: str) -> None:
        if self._left > 0:
            self._left -= 1
            try_print_message(line if self._left else f"{line} (further notices are not shown: see `pyvmm status`)")

    def _check_agent(self) -> None:
        machine = self._machine
        if not machine.agent.ready and machine.outcome is None:
            seconds = AGENT_FACTOR * machine.config.silence
            machine.notifier.notice(
                f"the guest's agent, which runs COMMAND, has not answered for {seconds:g} s; "
                f"`pyvmm log {machine.name}` shows the guest's console"
            )
