"""Runs one command in the guest through the agent and collects its output, for `x-execute` and the Python API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvmm.errors import HostError
from pyvmm.loop import Timers
from pyvmm.machine.agent import GuestAgent

OUTPUT_LIMIT = 256 << 10
"""Bytes kept of each stream: the reply must fit into the output queue of a monitor's client."""

GRACE = 5
"""Seconds beyond the command's own limit, after which the guest counts as hung: its agent would have killed it."""

Done = Callable[[dict[str, Any] | HostError], None]


def execute(agent: GuestAgent, timers: Timers, command: str, seconds: int, done: Done) -> None:
    """Run `command`; call `done` once with `status`, `stdout`, `stderr` (bytes) and `truncated`, or a HostError.

    `timers` use guest time: a paused guest is not hung.
    """
    streams = {"out": bytearray(), "err": bytearray()}
    truncated = False

    def output(stream: str, data: bytes) -> None:
        nonlocal truncated
        kept = streams[stream]
        truncated |= len(kept) + len(data) > OUTPUT_LIMIT
        kept += data[: OUTPUT_LIMIT - len(kept)]

    def ended(status: int | None) -> None:
        timer.cancel()
        if status is None:
            done(HostError("the guest, or the agent in it, restarted before the command ended"))
            return
        out, err = bytes(streams["out"]), bytes(streams["err"])
        done({"status": status, "stdout": out, "stderr": err, "truncated": truncated})

    def hung() -> None:
        cancel()
        if agent.ready:
            done(HostError(f"the guest did not end the command within {seconds} s"))
        else:
            done(
                HostError(
                    f"no agent answers in the guest after {seconds} s: does it boot, and with pyvmm's initramfs?"
                )
            )

    timer = timers.after(seconds + GRACE, hung)
    try:
        cancel = agent.execute(command, output, ended, seconds=seconds)
    except BaseException:
        timer.cancel()
        raise
