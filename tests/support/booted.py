"""A Linux guest for tests: a Machine and its loop, with calls that wait until something has happened.

    with Booted("debian-6.1", engine="user", cpus=2) as guest:
        assert "6.1" in guest.sh("uname -r")

Every wait has a limit and steps the loop; nothing sleeps. When a wait runs out the guest counts as broken, so that
the tests that share it fail at once instead of waiting in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from pyvmm import trace
from pyvmm.devices.balloon.plan import ResizeOutcome
from pyvmm.errors import ConfigError
from pyvmm.images.catalog import find_image
from pyvmm.launch.build import CONSOLE, command_line
from pyvmm.launch.consoles import CallbackConsole
from pyvmm.launch.session import Session
from pyvmm.machine import MachineConfig, Outcome

MIB = 1 << 20
BALLOON_ID = "c4c1b6cd-4ae1-4b1c-8a4f-0c5a61e0e8b2"  # what Linux calls the one device of its hv_balloon
DRIVER = "/sys/bus/vmbus/drivers/hv_balloon"
NEEDED_IMAGES = ("debian-6.1", "debian-6.12")  # of others Debian may have dropped the kernel: their tests skip
BOOT_LIMIT = 100.0  # seconds to the agent's first word, under emulation with other work on the machine
COMMAND_LIMIT = 60.0
RESIZE_LIMIT = 60.0
END_LIMIT = 60.0
TRACED = ("machine.state", "machine.reset", "machine.power_off", "agent.*", "vmbus*", "hyperv.*", "balloon*", "hv_*")
CONSOLE_TAIL = 6000  # characters shown of a failing guest's console
HELLO = "the agent's first word"


class CommandFailed(AssertionError):
    """A command in the guest ended with another status than 0."""


class Broken(AssertionError):
    """A guest that did not do what it was waited for, now or in an earlier test."""


class Booted:
    """A running guest. `image` names one of ours; `options` go into MachineConfig."""

    running: ClassVar[list[Booted]] = []
    """Whose console and trace a failing test shows."""

    def __init__(
        self,
        image: str = "debian-6.1",
        *,
        append: str = "",
        console: bool = True,
        kernel: Path | None = None,
        initrd: Path | None = None,
        wait: bool = True,
        **options: Any,
    ) -> None:
        try:
            found = find_image(image, build=False)
        except ConfigError as error:
            if image in NEEDED_IMAGES:
                raise
            pytest.skip(str(error))
        self.image = found
        self.config = MachineConfig(
            kernel=kernel or found.vmlinux,
            initrd=initrd or found.initrd,
            cmdline=command_line(append, agent_only=True).replace("" if console else CONSOLE, ""),
            **options,
        )
        self.console = bytearray()
        self.tail = trace.TailSink(100)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.outcomes: list[ResizeOutcome] = []
        self.broken = ""
        self._session: Session | None = None
        self._wait_for_agent = wait

    def __enter__(self) -> Self:
        for pattern in TRACED:
            trace.subscribe(pattern, self.tail)
        Booted.running.append(self)
        try:
            self._session = Session(self.config, console=lambda: CallbackConsole(self.console.extend)).__enter__()
            self.loop, self.machine = self._session.loop, self._session.machine
            self.machine.monitor.on_event(lambda name, data: self.events.append((name, data)))
            self.machine.start_services()
            if self.machine.balloon is not None:
                self.machine.balloon.on_finish.append(self.outcomes.append)
            self._session.start()
            if self._wait_for_agent:
                self.wait_agent()
        except BaseException as error:
            # Fixtures that fail have no `with` body: tell now what the guest said.
            error.add_note("\n".join(f"--- {title}\n{text}" for title, text in self.sections()))
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        if self._session is not None:
            self._session.__exit__(None, None, None)
        trace.unsubscribe(self.tail)
        if self in Booted.running:
            Booted.running.remove(self)

    def sections(self) -> list[tuple[str, str]]:
        """What a failure report shows of this guest."""
        name = f"{self.image.name} {self.config.engine} {self.config.cpus} vCPU"
        return [
            (f"guest console ({name})", self.console_text[-CONSOLE_TAIL:]),
            (f"last trace events ({name})", "\n".join(self.tail.lines())),
        ]

    @property
    def console_text(self) -> str:
        """Everything the guest wrote to its first serial port."""
        return self.console.decode("utf-8", "replace").replace("\r", "")

    # Waiting

    def until(self, happened: Callable[[], object], seconds: float, what: str) -> None:
        """Run the machine until `happened()`. Raises Broken after `seconds`, or if the machine ends meanwhile."""
        if self.broken:
            raise Broken(f"the guest is broken since an earlier test: {self.broken}")
        limit = time.monotonic() + seconds
        while not happened():
            left = limit - time.monotonic()
            if left <= 0:
                self.broken = f"no {what} within {seconds:.0f} s"
                raise Broken(self.broken)
            if self.machine.outcome is not None:
                self.broken = f"the machine ended before {what}: {self.machine.outcome}"
                raise Broken(self.broken)
            self.loop.step(left)

    def run_for(self, seconds: float) -> None:
        """Run the machine for a while, to see that something does not happen."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0 and self.machine.outcome is None:
            self.loop.step(left)

    def wait_agent(self) -> None:
        """Wait until the guest takes commands."""
        self.until(lambda: self.machine.agent.ready, BOOT_LIMIT, HELLO)

    def wait_balloon_ready(self) -> None:
        """Wait until hv_balloon has negotiated."""
        assert self.machine.balloon is not None
        self.until(lambda: self.machine.balloon.ready, COMMAND_LIMIT, "hv_balloon's negotiation")  # type: ignore[union-attr]

    def unbind_balloon(self) -> None:
        """Take hv_balloon from its device, and wait until the channel is closed."""
        self.sh(f"echo {BALLOON_ID} >{DRIVER}/unbind")
        assert self.machine.balloon is not None
        self.until(lambda: not self.machine.balloon.ready, 20, "closed channel")  # type: ignore[union-attr]

    def bind_balloon(self) -> None:
        """Give the device back to it, and wait until it has negotiated."""
        self.sh(f"echo {BALLOON_ID} >{DRIVER}/bind")
        self.wait_balloon_ready()

    @contextmanager
    def expect_reset(self) -> Iterator[None]:
        """Around what makes the guest reboot; ends when the new life takes commands."""
        before = self.machine.resets
        yield
        self.until(lambda: self.machine.resets > before, COMMAND_LIMIT, "reset")
        self.wait_agent()

    def wait_end(self) -> Outcome:
        """Wait until the machine has ended."""
        self.until(lambda: self.machine.outcome is not None, END_LIMIT, "end of the machine")
        assert self.machine.outcome is not None
        return self.machine.outcome

    # Doing

    def send(self, command: str) -> None:
        """Run a command in the guest without waiting for its end."""
        self.machine.agent.execute(command, lambda stream, data: None, lambda status: None)

    def sh(self, command: str, *, limit: float = COMMAND_LIMIT, check: bool = True) -> str:
        """A command's output, both streams. Raises CommandFailed if its status is not 0 (and `check`)."""
        text = bytearray()
        status: list[int | None] = []
        self.machine.agent.execute(command, lambda stream, data: text.extend(data), status.append, seconds=int(limit))
        self.until(lambda: status, limit + 10, f"end of the command {command!r}")
        output = text.decode("utf-8", "replace")
        if check and status[0] != 0:
            raise CommandFailed(f"status {status[0]} of {command!r}:\n{output}")
        return output

    def resize(self, size: int) -> ResizeOutcome:
        """Set the balloon's target and wait for how the attempt ended."""
        before = len(self.outcomes)
        self.machine.monitor.balloon_set(size)
        self.until(lambda: len(self.outcomes) > before, RESIZE_LIMIT, f"answer to a target of {size >> 20} MiB")
        return self.outcomes[-1]

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo, in kB as it says there."""
        pairs = (line.split(":", 1) for line in self.sh("cat /proc/meminfo").splitlines() if ":" in line)
        return {name: int(rest.split()[0]) for name, rest in pairs}

    def dmesg(self) -> str:
        """All of the guest kernel's log: takes seconds, see `log`."""
        return self.sh("dmesg")

    def log(self, pattern: str) -> str:
        """Lines of the guest kernel's log. Each byte of the agent's port is an exit, so ask for few."""
        return self.sh(f"dmesg | grep -E '{pattern}'", check=False)

    def memory_total(self) -> int:
        """MemTotal in bytes."""
        return 1024 * int(self.sh("grep MemTotal /proc/meminfo").split()[1])

    def added_ranges(self) -> list[tuple[int, int]]:
        """What /proc/iomem calls RAM above the boot memory: (address, bytes)."""
        found = []
        for line in self.sh("grep 'System RAM' /proc/iomem").splitlines():
            start, end = (int(number, 16) for number in line.split(":")[0].strip().split("-"))
            if start >= self.config.memory:
                found.append((start, end + 1 - start))
        return found

    def missing(self, ballooned: int) -> int:
        """By how much `ballooned` bytes lower MemTotal. Since Linux 5.11 ("hv_balloon: do
        adjust_managed_page_count() when ballooning/un-ballooning") it falls by just that; before, not at all.
        """
        return 0 if self.image.name == "debian-5.10" else ballooned

    def vmbus(self, name: str) -> dict[str, Any]:
        """What the host knows of one VMBus device."""
        return next(device for device in self.machine.monitor.info_vmbus() if device["name"] == name)
