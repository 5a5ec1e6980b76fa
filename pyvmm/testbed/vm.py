"""A booted guest in this process, of which a test controls the host side.

    with VM("debian-6.1", memory="512M", engine="user", cpus=2) as vm:
        assert vm.run("uname -r").stdout.startswith("6.1")
        vm.balloon.resize("256M")

The caller's thread is the machine's loop thread: `until` and all that wait run the loop, and between two calls no
device acts. So actions on `vm.machine` need no lock and no `post`, and a paused guest has no thread of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from shlex import join
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pyvmm import trace
from pyvmm.api.results import CommandFailed, Completed, Event
from pyvmm.errors import ConfigError
from pyvmm.launch.build import build_config
from pyvmm.launch.consoles import CallbackConsole
from pyvmm.launch.options import GuestOptions, read_keywords
from pyvmm.launch.session import Session
from pyvmm.seconds import check_seconds
from pyvmm.stoppable_clock import StoppableClock
from pyvmm.testbed.balloon import Balloon
from pyvmm.testbed.console import Console
from pyvmm.testbed.guest import Guest
from pyvmm.testbed.vmbus import Bus
from pyvmm.testbed.waits import GuestEnded, TimedOut

if TYPE_CHECKING:
    from pyvmm.cover.session import Coverage
    from pyvmm.faults import FaultSet
    from pyvmm.loop import Loop
    from pyvmm.machine import Machine, MachineConfig
    from pyvmm.machine.watched import ForcedReturn
    from pyvmm.testbed.host import Host
    from pyvmm.testbed.oracles.suite import Oracles
    from pyvmm.testbed.oracles.verdict import Verdict

BOOT_LIMIT = 120.0
"""Seconds until the guest's agent answers, in an emulated host that is busy."""

TRACED = ("machine.state", "machine.reset", "agent.*", "vmbus*", "hyperv.*", "balloon*", "hv_*", "testbed.*")
TRACE_KEPT = 1000
"""Trace events kept for the report of a failing test."""


EVENTS_KEPT = 10_000
"""QMP events kept, at least; the oldest are dropped."""


class VM:
    """A guest and its machine. The keywords are those of `pyvmm.Machine`, with `engine` for `hyperv`, and `cover`:
    modules whose code is covered, from their first instruction on if they are not part of the kernel.

    Raises ConfigError for wrong options. `config` is given instead of options for a guest that is no image of ours.
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        engine: str | None = None,
        config: MachineConfig | None = None,
        cover: Sequence[str] = (),
        **options: object,
    ) -> None:
        self.options: GuestOptions = read_keywords({"image": image, "hyperv": engine} | options, {})
        self._given = config
        self.covered = cover
        self.console = Console(self)
        self.balloon = Balloon(self)
        self.guest = Guest(self)
        self.vmbus = Bus(self)
        self.trace = trace.TailSink(TRACE_KEPT)
        self.events: list[Event] = []
        """The machine's QMP events since its start."""
        self.machine: Machine
        self.loop: Loop
        self.power_on = 0.0
        """time.monotonic() at the machine's start."""
        self.config: MachineConfig
        self._closing = contextlib.ExitStack()

    # Parts that are imported on use

    @cached_property
    def host(self) -> Host:
        """The raw host side of the started guest: everything a host can say."""
        from pyvmm.testbed.host import Host

        return Host.of(self)

    @cached_property
    def faults(self) -> FaultSet:
        """The fault rules between this guest and its host: `vm.faults.add("torndown-withheld")`."""
        from pyvmm.faults import FaultSet

        return FaultSet.of(self.machine)

    # Life

    def __enter__(self) -> Self:
        return self.boot()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Power the machine on and return at once. Raises ConfigError and HostError."""
        with contextlib.ExitStack() as stack:
            for pattern in TRACED:
                trace.subscribe(pattern, self.trace)
            stack.callback(trace.unsubscribe, self.trace)
            self.config = self._given or build_config(self._agent_only())
            console = CallbackConsole(self.console.received)
            session = stack.enter_context(Session(self.config, console=lambda: console))
            self.machine, self.loop = session.machine, session.loop
            self.machine.monitor.on_event(self._on_event)
            self.machine.start_services()
            self.balloon.attach()
            if self.covered:
                self.cover.expect(*self.covered)
            self.power_on = time.monotonic()
            session.start()
            self._closing = stack.pop_all()
        return self

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        self.events.append(Event(name, dict(data)))
        if len(self.events) > 2 * EVENTS_KEPT:
            del self.events[:-EVENTS_KEPT]

    def _agent_only(self) -> GuestOptions:
        """Return the options for a guest without a shell on its console."""
        return dataclasses.replace(self.options, command=self.options.command or ("true",))

    def boot(self, timeout: float = BOOT_LIMIT) -> Self:
        """Start the machine and wait until the guest takes commands and its hv_balloon has negotiated.

        Raises TimedOut and GuestEnded.
        """
        self.start()
        try:
            self.until(lambda: self.machine.agent.ready, timeout, "the guest's agent")
            if self.machine.balloon is not None:
                self.until(lambda: self.balloon.ready, timeout, "hv_balloon's negotiation")
            if self.covered:
                self.cover.arrived()
        except BaseException:
            self.close()
            raise
        return self

    def publish(self, name: str, socket: Path | None = None) -> None:
        """Register the machine as `name` and serve its monitor while the loop runs: `pyvmm status NAME` and so on.

        `socket` is where the monitor listens, if not beside the registry's entry; an emulated host needs it. Raises
        ConfigError if the name is not valid or in use.
        """
        from pyvmm.testbed import keep

        keep.publish(self, name, socket, self._closing)

    def keep(self, name: str, socket: Path | None = None) -> None:
        """In a forked child: publish the machine, detach from the parent, and serve it until it ends, as by `pyvmm
        stop NAME`. The guest is closed when this returns.
        """
        from pyvmm.testbed import keep

        self.publish(name, socket)
        keep.detach()
        keep.serve(self)

    def close(self) -> None:
        """End the machine at once and release its resources. May be called twice."""
        self._closing.close()

    @property
    def ended(self) -> bool:
        """Whether the machine has ended: powered off, panicked or failed."""
        return self.machine.outcome is not None

    # Waiting

    def until(self, happened: Callable[[], object], seconds: float, what: str) -> None:
        """Run the loop until `happened()`. Raises TimedOut after `seconds`, GuestEnded if the machine ends or poison
        has stopped it.

        `what` is waited for, in words: "not within 10 s: the balloon's answer".
        """
        limit = time.monotonic() + check_seconds(seconds)
        self._check_running()
        while not happened():
            left = limit - time.monotonic()
            if self.ended:
                raise GuestEnded(f"the machine ended ({self.machine.outcome}) before: {what}")
            if self.machine.state == "paused" and (touch := self._touch()):
                raise GuestEnded(f"poison stopped the guest ({touch}) before: {what}")
            if left <= 0:
                raise TimedOut(f"not within {seconds:g} s: {what}")
            self.loop.step(left)

    def _touch(self) -> str:
        """Return the access at which the poison oracle has stopped the guest; "" if it has not."""
        touches = self.oracles.poison.touches if "oracles" in vars(self) else ()
        return str(touches[-1]) if touches else ""

    def _check_running(self) -> None:
        if isinstance(self.loop.clock, StoppableClock) and self.loop.clock.stopped:
            raise ConfigError("the guest is frozen as a template: use it in a fork (Template.fork, resume_here)")

    def run_for(self, seconds: float) -> None:
        """Run the loop for `seconds`, or until the machine ends."""
        limit = time.monotonic() + seconds
        self._check_running()
        while (left := limit - time.monotonic()) > 0 and not self.ended:
            self.loop.step(left)

    # Doing

    def run(self, command: str | Sequence[str], *, timeout: float = 60.0, check: bool = False) -> Completed:
        """Run a command in the guest and wait for its end.

        A string is for the guest's shell, a list is a program and its arguments. The status is 124 after `timeout`
        seconds of guest time. With `check` a status other than 0 raises CommandFailed. Raises TimedOut if the guest
        does not answer, GuestEnded if it ends meanwhile.
        """
        text = command if isinstance(command, str) else join(command)
        seconds = max(1, ceil(check_seconds(timeout)))
        streams = {"out": bytearray(), "err": bytearray()}
        status: list[int | None] = []
        cancel = self.machine.agent.execute(
            text, lambda stream, data: streams[stream].extend(data), status.append, seconds=seconds
        )
        try:
            self.until(lambda: status, seconds + 10, f"end of the command {text!r}")
        except BaseException:
            cancel()
            raise
        if status[0] is None:
            raise GuestEnded(f"the guest restarted during the command {text!r}")
        out, err = (streams[name].decode("utf-8", "replace") for name in ("out", "err"))
        completed = Completed(status[0], out, err)
        if check and completed.status:
            raise CommandFailed(text, completed)
        return completed

    def wait_event(self, *names: str, timeout: float = 60.0, since: int = 0) -> Event:
        """Return the first QMP event of these names in `events[since:]`; wait for it. Raises TimedOut."""
        found: list[Event] = []

        def happened() -> bool:
            found[:] = [event for event in self.events[since:] if event.name in names]
            return bool(found)

        self.until(happened, timeout, " or ".join(names))
        return found[0]

    # Looking

    def seconds(self, moment: float) -> float:
        """Return the seconds from power-on to a moment of time.monotonic(), less those as a frozen template.

        Reports show console and messages by this clock.
        """
        clock = self.loop.clock
        return clock.at(moment) - clock.at(self.power_on) if isinstance(clock, StoppableClock) else moment

    @cached_property
    def oracles(self) -> Oracles:
        """The checks that `survives` makes, one by one: `vm.oracles.log.allow(...)`, `vm.oracles.poison.on()`."""
        from pyvmm.testbed.oracles.suite import Oracles

        return Oracles(self)

    def survives(self, seconds: float = 1.0, *, without: Sequence[str] = ()) -> Verdict:
        """Run the guest for `seconds` and return what the oracles have found since the last call; true if nothing."""
        return self.oracles.survives(seconds, without=without)

    @cached_property
    def cover(self) -> Coverage:
        """Code coverage of the guest's modules: `vm.cover.start("hv_balloon")`, then `vm.cover.report()`."""
        from pyvmm.cover.session import Coverage

        return Coverage(self.machine, lambda command: self.run(command, check=True).stdout)

    def fail(
        self,
        callee: str,
        *,
        in_: str = "",
        returns: int = 0,
        times: int = 1,
        skip: int = 0,
        module: str = "hv_balloon",
    ) -> ForcedReturn:
        """Let a call inside a guest's module return a value without being made: -12 or 0 for an allocation.

        `in_` is the function that calls; without it all of the module's. Calls are counted together: the first `skip`
        are made, then `times` fail (0: all that follow). Raises ConfigError with the calls there are.
        """
        from pyvmm.cover.returns import fail

        return fail(self.cover, module, callee, in_, value=returns, times=times, skip=skip)

    @property
    def status(self) -> str:
        """The machine's state in QEMU's terms: running, paused, guest-panicked, ..."""
        return self.machine.state

    def describe(self) -> Any:
        """Return what `pyvmm status --json` shows."""
        return self.machine.monitor.describe()
