"""All oracles of one guest, and the verdict on it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from pyvmm.testbed.kernel.backtrace import Names
from pyvmm.testbed.kernel.view import KernelImage, KernelView, NoKernelError
from pyvmm.testbed.oracles.accounting import Accounting
from pyvmm.testbed.oracles.asking import ask_for
from pyvmm.testbed.oracles.devices import DeviceList
from pyvmm.testbed.oracles.hang import Hang
from pyvmm.testbed.oracles.kernel_log import KernelLog
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle
from pyvmm.testbed.oracles.panic import Panic
from pyvmm.testbed.oracles.poison import Poison
from pyvmm.testbed.oracles.signals import Signals
from pyvmm.testbed.oracles.verdict import Verdict
from pyvmm.testbed.oracles.wakeups import Wakeups

AGENT_SECONDS: Final = 20.0
"""Seconds after which an agent that has not answered counts as hung. In a busy emulated host it may take three."""

KFENCE: Final = "f=/sys/module/kfence/parameters/sample_interval; [ ! -e $f ] || echo 50 >$f"
"""Switches KFENCE on, which Debian's kernels have since 6.12: each 50 ms an object is made whose uses are checked."""

SAMPLES: Final = 8
"""How often each oracle looks at the running guest in a watch."""


class Oracles:
    """The oracles of one guest, as attributes. `findings` has all that were found so far."""

    def __init__(self, vm: Bed) -> None:
        self.vm = vm
        self.findings: list[Finding] = []
        self._view: KernelView | None = None
        self._image: KernelImage | None = None
        self._unreadable = False
        self.panic = Panic(vm)
        self.log = KernelLog(vm, self.kernel)
        self.poison = Poison(vm, self.names)
        self.hang = Hang(vm, self.kernel, self.names)
        self.accounting = Accounting(vm, lambda: self.poison.pages.pages)
        self.wakeups = Wakeups(vm)
        self.signals = Signals(vm)
        self.devices = DeviceList(vm)

    @cached_property
    def all(self) -> list[Oracle]:
        """Each oracle, in the order of their findings."""
        return [
            self.panic,
            self.poison,
            self.log,
            self.hang,
            self.accounting,
            self.wakeups,
            self.signals,
            self.devices,
        ]

    def kernel(self) -> KernelView | None:
        """Return the guest's kernel for reading; None if it cannot be read: none yet, or without symbols."""
        if self._unreadable:
            return None
        if self._view is None:
            try:
                if self._image is None:
                    self._image = KernelImage(self.vm.machine.config.kernel)
            except NoKernelError:
                self._unreadable = True
                return None
            try:
                self._view = KernelView(self.vm.machine.memory, self._image)
            except NoKernelError:
                return None
        return self._view

    def names(self) -> Names:
        """Return names for the kernel's addresses."""
        return Names(self.kernel())

    def begin(self) -> None:
        """Take the guest's present state for its ordinary one: what was logged, counted and lost until now does not
        count any more. To be called once the guest is up; a first `survives` without it judges everything since boot.
        """
        answer = ask_for(self.vm, self.all, AGENT_SECONDS, KFENCE)
        for oracle in self.all:
            oracle.begin(answer)

    def survives(self, seconds: float = 1.0, *, without: Iterable[str] = ()) -> Verdict:
        """Run the guest for `seconds`, then return what all oracles find; those named in `without` are left out.

        Each finding is returned once: a second call tells what has happened since. A machine that is paused is not
        run, and its guest not asked. Raises ValueError for a name that no oracle has.
        """
        left_out = set(without)
        if unknown := left_out - {oracle.name for oracle in self.all}:
            names = ", ".join(oracle.name for oracle in self.all)
            raise ValueError(f"no oracle is named {', '.join(map(repr, sorted(unknown)))}: there are {names}")
        chosen = [oracle for oracle in self.all if oracle.name not in left_out]
        for oracle in chosen:
            oracle.open_window()
        self._watch(chosen, seconds)
        answer = ask_for(self.vm, chosen, AGENT_SECONDS)
        found = [finding for oracle in chosen for finding in oracle.judge(answer)]
        self.findings += found
        return Verdict(tuple(found))

    def check(self, oracle: Oracle, seconds: float = 1.0) -> list[Finding]:
        """Return what one oracle finds, after `seconds` of watching."""
        return list(self.survives(seconds, without=[each.name for each in self.all if each is not oracle]).findings)

    def _watch(self, chosen: list[Oracle], seconds: float) -> None:
        machine = self.vm.machine
        begin = time.monotonic()
        for sample in range(1, SAMPLES + 1):
            until = begin + seconds * sample / SAMPLES
            while (left := until - time.monotonic()) > 0 and machine.outcome is None and machine.state == "running":
                self.vm.loop.step(left)
            for oracle in chosen:
                oracle.watch()
