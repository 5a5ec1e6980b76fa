"""The guest's own side as a test sees it: commands, files, sysfs, its log."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

BALLOON_DRIVER = "/sys/bus/vmbus/drivers/hv_balloon"


class Guest:
    """Commands and files of a guest. Each byte of an answer is an exit: ask for few."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def sh(self, command: str, *, timeout: float = 60.0) -> str:
        """Run a shell command and return its stdout without trailing newlines. Raises CommandFailed."""
        return self._vm.run(command, timeout=timeout, check=True).stdout.rstrip("\n")

    def read(self, path: str) -> str:
        """Return a file's text. Raises CommandFailed."""
        return self._vm.run(["cat", path], check=True).stdout

    def write(self, path: str, text: str) -> None:
        """Write text to a file, as `printf %s TEXT > PATH` does. Raises CommandFailed."""
        self._vm.run(f"printf %s {quote(text)} > {quote(path)}", check=True)

    def dmesg(self, pattern: str = "") -> list[str]:
        """Return the lines of the kernel's log that match an extended regular expression; all without one."""
        command = f"dmesg | grep -E -e {quote(pattern)}" if pattern else "dmesg"
        return self._vm.run(command).stdout.splitlines()

    def meminfo(self) -> dict[str, int]:
        """Return /proc/meminfo's values in bytes; counts without unit, such as HugePages_Total, as they are."""
        values = {}
        for line in self.read("/proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            number, _, unit = rest.strip().partition(" ")
            values[name] = int(number) * (1024 if unit == "kB" else 1)
        return values

    @property
    def memory_total(self) -> int:
        """MemTotal in bytes."""
        return 1024 * int(self.sh("grep MemTotal /proc/meminfo").split()[1])

    @property
    def uptime(self) -> float:
        """Seconds since the guest's boot, by its own clock."""
        return float(self.read("/proc/uptime").split()[0])
