"""What a machine is made of, checked before anything is created.

Numbers are plain: sizes in bytes, times in seconds. The command line and scripts fill this in; nothing here is read
from files or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyvmm.errors import ConfigError

EngineChoice = Literal["auto", "kernel", "user"]
EntryProtocol = Literal["auto", "64", "pvh"]
PanicPolicy = Literal["stop", "keep"]

MIB = 1 << 20
MAX_CPUS = 255  # VP index = APIC id; more needs x2APIC ids in MSIs
MAX_MEMORY = 1 << 40  # what the guest's 40 physical address bits of the oldest CPUs reach


@dataclass(slots=True)
class MachineConfig:
    """One virtual machine. `check()` is called by Machine; ConfigError is one line with the next step."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""
    memory: int = 512 * MIB
    cpus: int = 1
    name: str = "vm"
    engine: EngineChoice = "auto"
    entry: EntryProtocol = "auto"
    on_panic: PanicPolicy = "stop"
    reboot: bool = True  # False: a reset ends the machine
    keep_target: bool = True  # the balloon's target is applied again after a reset
    kvm: str = "/dev/kvm"
    max_vmbus: int = 0x00050003
    devices: frozenset[str] = field(
        default_factory=lambda: frozenset({"balloon", "heartbeat", "shutdown", "timesync"})
    )

    def check(self) -> None:
        """Raise ConfigError for what no machine can be."""
        if self.cpus < 1:
            raise ConfigError(f"{self.cpus} CPUs: a machine needs at least 1")
        if self.cpus > MAX_CPUS:
            raise ConfigError(f"{self.cpus} CPUs: pyvmm goes up to {MAX_CPUS}")
        if self.memory % 4096:
            raise ConfigError(f"{self.memory} bytes of memory: not a multiple of 4 KiB")
        if self.memory < MIB:
            raise ConfigError(f"{self.memory >> 10} KiB of memory: a PC needs at least 1 MiB, Linux some 64 MiB")
        if self.memory > MAX_MEMORY:
            raise ConfigError(f"{self.memory >> 30} GiB of memory: pyvmm goes up to {MAX_MEMORY >> 30} GiB")
        for path, what in ((self.kernel, "kernel"), (self.initrd, "initrd")):
            if path is not None and not path.is_file():
                raise ConfigError(f"{what} {path}: no such file")
