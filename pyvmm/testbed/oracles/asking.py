"""Asks the guest's agent the questions of several oracles in one command.

A command costs the guest some forks, and each byte of its output an exit, so scripts filter in the guest and all are
asked at once. An agent that does not answer is a finding, not an error of the test.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from pyvmm.errors import ConfigError
from pyvmm.testbed.oracles.oracle import Bed

MARK = "@@pyvmm-oracle "
"""Beginning of a line before each answer; nothing that a kernel prints."""


def can_answer(vm: Bed) -> bool:
    """Return whether the guest runs and its agent was there once."""
    machine = vm.machine
    return machine.outcome is None and machine.state == "running" and machine.agent.ready


def ask(vm: Bed, questions: Mapping[str, str], seconds: float) -> dict[str, str] | None:
    """Return the output of each script; None if the agent does not answer within `seconds`."""
    if not can_answer(vm):
        return None
    script = "\n".join(f"echo '{MARK}{name}'\n{question}" for name, question in questions.items())
    output = bytearray()
    status: list[int | None] = []
    try:
        cancel = vm.machine.agent.execute(
            f"exec 2>/dev/null\n{script}",
            lambda stream, data: output.extend(data) if stream == "out" else None,
            status.append,
        )
    except ConfigError:  # too many commands wait for it already
        return None
    limit = time.monotonic() + seconds
    while not status and (left := limit - time.monotonic()) > 0 and can_answer(vm):
        vm.loop.step(left)
    if not status:
        cancel()
    return split(output.decode("utf-8", "replace")) if status and status[0] is not None else None


def split(text: str) -> dict[str, str]:
    """Split the output of all scripts into the answers."""
    answers: dict[str, str] = {}
    for part in text.split(MARK)[1:]:
        name, _, answer = part.partition("\n")
        answers[name] = answer
    return answers
