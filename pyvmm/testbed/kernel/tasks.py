"""The kernel's tasks, read from its list of them.

Source: Linux include/linux/sched.h, struct task_struct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm.testbed.kernel.view import KernelView, NoKernelError

_UNINTERRUPTIBLE, _NOLOAD = 2, 0x400
_LIMIT: Final = 8192
"""Tasks that are read; a list that the guest has damaged may be endless."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task. `switches` counts how often it was scheduled; `stack` is its kernel stack's lowest address, `sp` where
    it stands while it sleeps."""

    address: int
    pid: int
    name: str
    state: int
    switches: int
    stack: int
    sp: int

    @property
    def is_stuck(self) -> bool:
        """Whether it sleeps uninterruptibly, as ps's D; idle kernel threads (I) do not."""
        return bool(self.state & _UNINTERRUPTIBLE) and not self.state & _NOLOAD


def read_tasks(view: KernelView) -> list[Task]:
    """Return the leader of each thread group. The vCPUs must not run. Raises NoKernelError."""
    layout, thread = view.image.layout("task_struct"), view.image.layout("thread_struct")
    tasks = layout.at("tasks")
    places = {name: layout.at(name) for name in ("pid", "comm", "nvcsw", "nivcsw", "stack")}
    state, sp = layout.at("__state", "state"), layout.at("thread") + thread.at("sp")
    first = at = view.image.symbol("init_task")
    found: list[Task] = []
    while len(found) < _LIMIT:
        switches = view.u64(at + places["nvcsw"]) + view.u64(at + places["nivcsw"])
        found.append(
            Task(
                at,
                view.u32(at + places["pid"]),
                view.text(at + places["comm"], 16),
                view.u32(at + state),
                switches,
                view.u64(at + places["stack"]),
                view.u64(at + sp),
            )
        )
        at = view.u64(at + tasks) - tasks
        if at == first:
            return found
    raise NoKernelError("the list of tasks has no end")
