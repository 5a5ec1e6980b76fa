"""Runs the self-test: the plan of guests and steps, and the rows that become the table and the report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyvmm import trace
from pyvmm.api import Machine
from pyvmm.errors import PyvmmError
from pyvmm.host.inside import inside
from pyvmm.hyperv import kernel, user
from pyvmm.kvm import Kvm
from pyvmm.machine.engines import missing
from pyvmm.sandbox import confine
from pyvmm.selftest.kvm_checks import CHECKS
from pyvmm.selftest.rows import Outcome, Row, StepFailed, StepSkipped
from pyvmm.selftest.steps import BOOT_SIZE, GROWN_SIZE, MIB, STEPS, Guest

TRACE_LINES = 120
CONSOLE_LINES = 40
TRACED = "*,!machine.vcpu_exit,!machine.memory,!loop.*"
"""Events kept for a failed step. Recording every exit would make the guest slower than it is."""

BOOT_LIMIT, STEP_LIMIT = 30.0, 20.0
"""Seconds for a boot and for any other step on real hardware; in the emulated host four times that."""

PING_LIMIT = 5.0
"""Seconds for a guest in which a step has failed to run `true`."""

EMULATED_FACTOR = 4
FILL, FILL_EMULATED = 192 * MIB, 64 * MIB
"""Memory that a guest touches before it is made smaller."""

ENGINES = {"kernel": kernel.NEEDED, "user": user.NEEDED}


@dataclass(frozen=True, slots=True)
class Plan:
    """One guest: its engine, vCPUs, and the steps by name."""

    engine: str
    cpus: int
    steps: tuple[str, ...]
    confined: bool = False  # in a process of its own, under --sandbox require
    enlightenments: str = ""  # a list for --enlightenments

    @property
    def title(self) -> str:
        if self.confined:
            return "confined, in a process of its own"
        more = f", enlightenments {self.enlightenments}" if self.enlightenments else ""
        return f"{self.engine} engine, {self.cpus} vCPU{'s' if self.cpus > 1 else ''}{more}"


ALL = tuple(STEPS)
FULL = (
    *(Plan(engine, cpus, ALL) for engine in ENGINES for cpus in (1, 2)),
    *(Plan(engine, 2, ("boot", "hot-add", "kernel log", "reboot"), enlightenments="all") for engine in ENGINES),
    Plan("user", 1, ("boot", "balloon out", "balloon back", "hot-add", "reboot"), confined=True),
)
QUICK = (
    Plan("kernel", 2, ("boot", "registers", "balloon out", "balloon back", "panic")),
    Plan("user", 1, ("boot", "faults", "hot-add", "kernel log", "reboot", "kexec")),
)
"""Each step once, each engine once: for a first look, and for pyvmm's own tests."""

Show = Callable[[Row, bool], None]
"""show(row, done): called before a step with done=False, and after it."""


class SelfTest:
    """One run. `rows` grows as steps end, so that an interrupted run has a report too."""

    def __init__(self, kernel: Path, initrd: Path, plans: tuple[Plan, ...], show: Show) -> None:
        self._kernel = kernel
        self._initrd = initrd
        self._plans = plans
        self._show = show
        self._factor = EMULATED_FACTOR if inside() else 1
        self.rows: list[Row] = []

    def run(self) -> None:
        """Run all checks and plans."""
        with Kvm() as kvm:
            for name, check in CHECKS.items():
                self._row(Row("KVM", name), partial(check, kvm))
            lacking = {engine: missing(kvm, needed) for engine, needed in ENGINES.items()}
        for plan in self._plans:
            if lacks := lacking[plan.engine]:
                self._skip(plan, plan.steps, f"this KVM lacks {', '.join(lacks)}")
            elif plan.cpus > (os.cpu_count() or 1) and not inside():
                self._skip(plan, plan.steps, f"this computer has {os.cpu_count()} CPU")
            elif plan.confined and (without := [name for name, _ in confine.missing()]):
                self._skip(plan, plan.steps, f"this kernel lacks {', '.join(without)}")
            else:
                self._guest(plan)

    def _guest(self, plan: Plan) -> None:
        tail = trace.TailSink(TRACE_LINES)
        trace.subscribe(TRACED, tail)
        try:
            machine = Machine(
                kernel=self._kernel,
                initrd=self._initrd,
                append="pyvmm.agent",
                memory=f"{BOOT_SIZE // MIB}M,max={GROWN_SIZE // MIB}M",
                cpus=plan.cpus,
                hyperv=plan.engine,  # type: ignore[arg-type]
                name=f"selftest-{os.getpid()}-{plan.engine}-{plan.cpus}{'-confined' if plan.confined else ''}",
                enlightenments=plan.enlightenments or None,
                sandbox="require" if plan.confined else "off",
                process=plan.confined,
            )
            with machine as vm:
                guest = Guest(
                    vm,
                    plan.cpus,
                    boot_limit=BOOT_LIMIT * self._factor,
                    limit=STEP_LIMIT * self._factor,
                    fill=FILL_EMULATED if inside() else FILL,
                )
                self._steps(plan, guest, tail)
        finally:
            trace.unsubscribe(tail)

    def _steps(self, plan: Plan, guest: Guest, tail: trace.TailSink) -> None:
        for number, name in enumerate(plan.steps):
            row = self._row(Row(plan.title, name), partial(STEPS[name], guest))
            if row.status == "failed":
                row.trace += tail.lines()
                with contextlib.suppress(PyvmmError):
                    row.console = guest.vm.console.splitlines()[-CONSOLE_LINES:]
            if row.status == "failed" and (why := self._why_over(guest)):
                self._skip(plan, plan.steps[number + 1 :], why)
                return

    def _why_over(self, guest: Guest) -> str:
        """Return why no further step can be tried after a failed one; empty if one can."""
        if not guest.vm.running:
            return "the guest has ended"
        try:
            guest.vm.run("true", timeout=PING_LIMIT * self._factor)
        except PyvmmError:
            return "the guest does not answer"
        return ""

    def _row(self, row: Row, step: Callable[[], Outcome]) -> Row:
        self._show(row, False)
        before = time.monotonic()
        try:
            outcome = step()
            row.detail, row.figures = outcome.detail, outcome.figures
        except StepSkipped as error:
            row.status, row.detail = "skipped", str(error)
        except (StepFailed, PyvmmError) as error:
            row.status, row.detail = "failed", str(error)
        except Exception as error:  # a bug in pyvmm, on this host: that is what the report is for
            row.status, row.detail = "failed", f"{type(error).__name__}: {error}"
            row.trace = list(_frames(error))
        row.seconds = time.monotonic() - before
        self.rows.append(row)
        self._show(row, True)
        return row

    def _skip(self, plan: Plan, names: tuple[str, ...], why: str) -> None:
        for name in names:
            row = Row(plan.title, name, "skipped", detail=why)
            self.rows.append(row)
            self._show(row, True)


def _frames(error: Exception) -> Iterator[str]:
    """Yield the traceback's places, files by their names only."""
    from traceback import extract_tb

    for frame in extract_tb(error.__traceback__):
        yield f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return the boot times of the guests in relation to each other."""
    boots = {row.group: row.seconds for row in rows if row.name == "boot" and row.status == "ok"}
    pairs = {
        "boot, user engine / kernel engine, 1 vCPU": ("user engine, 1 vCPU", "kernel engine, 1 vCPU"),
        "boot, user engine / kernel engine, 2 vCPUs": ("user engine, 2 vCPUs", "kernel engine, 2 vCPUs"),
        "boot, 2 vCPUs / 1 vCPU, kernel engine": ("kernel engine, 2 vCPUs", "kernel engine, 1 vCPU"),
        "boot, 2 vCPUs / 1 vCPU, user engine": ("user engine, 2 vCPUs", "user engine, 1 vCPU"),
        "boot, all enlightenments / the default ones, kernel engine": (
            "kernel engine, 2 vCPUs, enlightenments all",
            "kernel engine, 2 vCPUs",
        ),
        "boot, all enlightenments / the default ones, user engine": (
            "user engine, 2 vCPUs, enlightenments all",
            "user engine, 2 vCPUs",
        ),
    }
    return {
        text: round(boots[above] / boots[below], 2)
        for text, (above, below) in pairs.items()
        if above in boots and boots.get(below)
    }
