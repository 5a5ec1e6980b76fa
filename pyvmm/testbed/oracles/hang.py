"""The hang oracle: a part of the guest no longer makes progress.

agent       does not answer a command
heartbeat   hv_utils does not answer the host's beats, which it does in a tasklet
vCPU        never idle, always in the kernel, for longer than any work of an idle guest takes
task        in uninterruptible sleep (D) without being scheduled once; its kernel stack says where
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final

from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.guest_text import clean, one_line
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot
from pyvmm.testbed.kernel.backtrace import Names
from pyvmm.testbed.kernel.tasks import Task, read_tasks
from pyvmm.testbed.kernel.view import KernelView, NoKernelError
from pyvmm.testbed.oracles.asking import Answer, ask, can_answer
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

TASK_SECONDS: Final = 7.0
"""Seconds for which a task may sleep uninterruptibly: hv_balloon waits five for memory to be onlined."""

SPIN_SECONDS: Final = 8.0
"""Seconds for which a vCPU may be busy in the kernel while no command runs in the guest."""

SPIN_PERIOD: Final = 0.2
BEAT_SECONDS: Final = 3 * Heartbeat.PERIOD
"""Seconds without an answer to a beat that the guest has got."""

STACK_SECONDS: Final = 5.0
KERNEL_HALF: Final = 1 << 63
CONSOLE_LINES: Final = 30


class Hang(Oracle):
    """Finds what stands still or spins. `view()` reads the guest's kernel, if it can; `names()` names addresses."""

    name: ClassVar[str] = "hang"

    def __init__(
        self,
        vm: Bed,
        view: Callable[[], KernelView | None] = lambda: None,
        names: Callable[[], Names] = lambda: Names(None),
    ) -> None:
        super().__init__(vm)
        self._view, self._names = view, names
        self._samples: list[list[VcpuSnapshot]] = []

    def open_window(self) -> None:
        self._samples.clear()

    def watch(self) -> None:
        self._samples.append(self.vm.machine.slot.vcpu_snapshots())

    def judge(self, answer: Answer | None) -> list[Finding]:
        if not can_answer(self.vm):
            return []  # it has ended, is paused, or has never been up: no hang
        found = self._judge_heartbeat()
        if answer is None:
            found.append(self.finding("the guest's agent does not answer", self._where()))
            return found
        return found + self._judge_vcpus() + self._judge_tasks()

    def _judge_heartbeat(self) -> list[Finding]:
        services = self.vm.machine.services
        for device in services.bus.devices():
            if isinstance(device, Heartbeat) and device.silence > BEAT_SECONDS:
                line = f"no heartbeat for {device.silence:.0f} s, {device.beats} answers before"
                return [self.finding(line, self._where())]
        return []

    def _judge_tasks(self) -> list[Finding]:
        """Find tasks that are in the same sleep for TASK_SECONDS."""
        stuck = self._stuck_tasks()
        limit = time.monotonic() + TASK_SECONDS
        while stuck and time.monotonic() < limit:
            self._run(0.25)
            now = self._stuck_tasks()
            stuck = {key: each for key, each in now.items() if key in stuck}
        return [
            self.finding(f"task {each.pid} ({one_line(each.name)}) is stuck in the kernel", self._stack(each))
            for each in stuck.values()
        ]

    def _stuck_tasks(self) -> dict[tuple[int, int], Task]:
        """Return tasks in uninterruptible sleep, by what stays the same while they do not run."""
        view = self._view()
        if view is None:
            return {}
        try:
            with self.vm.machine.slot.stopped_vcpus():
                tasks = read_tasks(view)
        except NoKernelError:
            return {}
        return {(each.address, each.switches): each for each in tasks if each.is_stuck}

    def _stack(self, task: Task) -> str:
        """Return a sleeping task's stack: by the guest, which knows its frames, else by what lies there."""
        answer = ask(self.vm, [":", f"cat /proc/{task.pid}/stack"], STACK_SECONDS)
        text = clean(answer.output).strip() if answer is not None else ""
        return text or "\n".join(self._names().backtrace(0, task.sp)[1:])

    def _judge_vcpus(self) -> list[Finding]:
        busy = self._busy(self._samples)
        limit = time.monotonic() + SPIN_SECONDS
        while busy and time.monotonic() < limit:
            if self.vm.machine.agent.busy:
                return []
            self._run(SPIN_PERIOD)
            self.watch()
            busy &= self._busy(self._samples[-1:])
        return [self.finding(f"vCPU {vcpu} spins in the kernel", self._rips(vcpu)) for vcpu in sorted(busy)]

    def _busy(self, samples: list[list[VcpuSnapshot]]) -> set[int]:
        """Return the vCPUs that were in the kernel, and not halted, in each of the samples."""
        if not samples or not all(samples):
            return set()
        return {
            vcpu
            for vcpu in range(min(map(len, samples)))
            if all(not each[vcpu].halted and each[vcpu].rip >= KERNEL_HALF for each in samples)
        }

    def _run(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0 and can_answer(self.vm):
            self.vm.loop.step(left)

    # What explains it

    def _where(self) -> str:
        self.watch()
        vcpus = "\n".join(self._rips(vcpu) for vcpu in range(len(self._samples[-1])))
        console = clean(self.vm.machine.console_tail.since(0)[1]).splitlines()[-CONSOLE_LINES:]
        return "\n".join([vcpus, "console:", *console])

    def _rips(self, vcpu: int) -> str:
        """Return the places where a vCPU was seen, the most frequent first."""
        seen: Counter[str] = Counter()
        names = self._names()
        for sample in self._samples:
            if vcpu < len(sample):
                each = sample[vcpu]
                state = "idle" if each.is_idle else "halted with interrupts off" if each.is_stuck else ""
                interrupts = "" if each.halted or each.interrupts else ", interrupts off"
                seen[state or f"{names.name(each.rip)}{interrupts}"] += 1
        lines = [f"  {count} x {place}" for place, count in seen.most_common()]
        return "\n".join([f"vCPU {vcpu}, {len(self._samples)} samples:", *lines])
