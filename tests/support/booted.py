"""A Linux guest for tests: the test bed's VM, configured by MachineConfig, which several tests may share.

    with Booted("debian-6.1", engine="user", cpus=2) as guest:
        assert "6.1" in guest.sh("uname -r")

Every wait has a limit and steps the loop; nothing sleeps. When a wait runs out the guest counts as broken, so that
the tests that share it fail at once instead of waiting in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from pyvmm.errors import ConfigError
from pyvmm.images.catalog import find_image
from pyvmm.launch.build import CONSOLE, command_line
from pyvmm.machine import MachineConfig, Outcome
from pyvmm.testbed.vm import VM
from pyvmm.testbed.waits import GuestEnded, TimedOut

MIB = 1 << 20
NEEDED_IMAGES = ("debian-6.1", "debian-6.12")  # of others Debian may have dropped the kernel: their tests skip
BOOT_LIMIT = 100.0  # seconds to the agent's first word, under emulation with other work on the machine
COMMAND_LIMIT = 60.0
END_LIMIT = 60.0
CONSOLE_TAIL = 6000  # characters shown of a failing guest's console
HELLO = "the agent's first word"


class Broken(AssertionError):
    """A guest that did not do what it was waited for, now or in an earlier test."""


class Booted(VM):
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
        cmdline = command_line(append, agent_only=True).replace("" if console else CONSOLE, "")
        kernel, initrd = kernel or found.vmlinux, initrd or found.initrd
        super().__init__(config=MachineConfig(kernel=kernel, initrd=initrd, cmdline=cmdline, **options))
        self.broken = ""
        self._wait_for_agent = wait

    def __enter__(self) -> Self:
        Booted.running.append(self)
        try:
            self.start()
            if self._wait_for_agent:
                self.wait_agent()
        except BaseException as error:
            # Fixtures that fail have no `with` body: tell now what the guest said.
            error.add_note("\n".join(f"--- {title}\n{text}" for title, text in self.sections()))
            self.close()
            raise
        return self

    def close(self) -> None:
        super().close()
        if self in Booted.running:
            Booted.running.remove(self)

    def sections(self) -> list[tuple[str, str]]:
        """What a failure report shows of this guest."""
        name = f"{self.image.name} {self.config.engine} {self.config.cpus} vCPU"
        return [
            (f"guest console ({name})", self.console.text[-CONSOLE_TAIL:]),
            (f"last trace events ({name})", "\n".join(self.trace.lines())),
        ]

    # Waiting

    def until(self, happened: Callable[[], object], seconds: float, what: str) -> None:
        """Run the machine until `happened()`. Raises Broken after `seconds`, or if the machine ends meanwhile."""
        if self.broken:
            raise Broken(f"the guest is broken since an earlier test: {self.broken}")
        try:
            super().until(happened, seconds, what)
        except (TimedOut, GuestEnded) as error:
            self.broken = str(error)
            raise Broken(self.broken) from None

    def wait_agent(self) -> None:
        """Wait until the guest takes commands."""
        self.until(lambda: self.machine.agent.ready, BOOT_LIMIT, HELLO)

    def wait_balloon_ready(self) -> None:
        """Wait until hv_balloon has negotiated."""
        self.until(lambda: self.balloon.ready, COMMAND_LIMIT, "hv_balloon's negotiation")

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
        """A command's output, stdout before stderr. Raises CommandFailed for a status other than 0, if `check`."""
        done = self.run(command, timeout=limit, check=check)
        return done.stdout + done.stderr

    def log(self, pattern: str) -> str:
        """Lines of the guest kernel's log. Each byte of the agent's port is an exit, so ask for few."""
        return self.sh(f"dmesg | grep -E '{pattern}'", check=False)

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
