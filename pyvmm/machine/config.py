"""The configuration of a machine, checked before anything is created.

Numbers are plain: sizes in bytes, times in seconds. The command line and scripts fill it in; nothing here is read
from files or the environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyvmm.address_map import HOT_ADD_SLOTS, MIB
from pyvmm.errors import ConfigError
from pyvmm.firmware.multiboot import Module
from pyvmm.hyperv.enlightenments import chosen
from pyvmm.machine.autosize import Limits
from pyvmm.machine.devices import DEVICES
from pyvmm.machine.panic import Policy
from pyvmm.ram_backend import ANONYMOUS, Backend

if TYPE_CHECKING:
    from pyvmm.disks.spec import DiskSpec
    from pyvmm.net.spec import NetSpec

EngineChoice = Literal["auto", "kernel", "user"]
EntryProtocol = Literal["auto", "64", "pvh"]
BalloonVersion = Literal["1.0", "2.0", "3.0"]

DEFAULT_DEVICES = ("hv-balloon", "heartbeat", "shutdown", "timesync")
MAX_CPUS = 255  # VP index = APIC id; more needs x2APIC ids in MSIs
DEFAULT_BUFFER = 20  # percent, as Hyper-V
MAX_MEMORY = 1 << 40  # the oldest CPUs have 40 physical address bits


@dataclass(slots=True)
class MachineConfig:
    """Configuration of one machine. Machine calls `check()`; its ConfigError is one line with the next step."""

    kernel: Path
    initrd: Path | None = None
    modules: tuple[Module, ...] = ()  # of a Multiboot kernel
    cmdline: str = ""
    memory: int = 512 * MIB
    cpus: int = 1
    name: str = "vm"
    engine: EngineChoice = "auto"
    entry: EntryProtocol = "auto"
    on_panic: Policy = "auto"  # the machine ends, goes on, or ends unless a crash kernel runs
    silence: float = 10.0  # seconds without output until a notice is given; our images print within two
    paused: bool = False  # the vCPUs wait before their first instruction
    cpu_vendor: str = ""  # as CPUID names it, such as GenuineIntel; empty: the host's
    hidden_features: frozenset[str] = frozenset()  # CPU features, by the names in machine.cpu_features
    kvm_leaves: bool = False  # the guest finds KVM in CPUID, not Hyper-V
    test_devices: bool = False  # devices for kvm-unit-tests and other test programs
    reboot: bool = True  # False: a reset ends the machine
    keep_target: bool = True  # the balloon's target is applied again after a reset
    page_reporting: bool = True  # the guest's free pages go back to the host by themselves
    enlightenments: tuple[str, ...] = ()  # words such as "+stimer" and "-crash" that change the default
    kvm: str = "/dev/kvm"
    max_vmbus: int = 0x00050003
    min_memory: int | None = None  # automatic sizing goes down to this; it is on if this or the buffer is given
    buffer: int | None = None  # percent of its demand that automatic sizing gives a guest on top
    max_memory: int | None = None  # the largest size to which the balloon may grow the guest; None: the boot size
    mem_backend: Backend = ANONYMOUS
    slots: int | None = None  # KVM memory slots for hot-added memory, at most; None: 64
    balloon_version: BalloonVersion = "3.0"  # the newest Dynamic Memory protocol spoken
    balloon_piece: int = 128 * MIB  # memory per balloon request
    debug: frozenset[str] = frozenset()  # kinds of `launch.options.DEBUG_KINDS` that are printed as they happen
    status_report: bool = True  # the guest's pressure reports are emitted as events
    absent_drivers: dict[str, str] | None = None  # reasons by module; None if the initramfs is not pyvmm's
    faults: tuple[str, ...] = ()  # fault rules, as pyvmm.faults.parse reads them
    disks: tuple[DiskSpec, ...] = ()
    cover: tuple[str, ...] = ()  # modules that are covered as the guest loads them: names, or paths of their files
    nets: tuple[NetSpec, ...] = ()
    """Links of the devices `netvsc`, in their order; one without is connected to nothing."""
    devices: tuple[str, ...] = DEFAULT_DEVICES
    """Names from machine.devices.DEVICES, one per device; names may repeat."""

    def check(self) -> None:
        """Raise ConfigError for an impossible configuration. Does not check files: `firmware.linux` does."""
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
        chosen(self.enlightenments, None if self.engine == "auto" else self.engine)
        self._check_devices()
        self._check_growth()
        self._check_sizing()

    @property
    def maximum_memory(self) -> int:
        """Return the largest size the guest may have, in bytes."""
        return self.memory if self.max_memory is None else self.max_memory

    @property
    def limits(self) -> Limits | None:
        """Return the limits of automatic sizing; None if it is off."""
        if self.min_memory is None and self.buffer is None:
            return None
        least = self.memory if self.min_memory is None else self.min_memory
        return Limits(least, self.maximum_memory, DEFAULT_BUFFER if self.buffer is None else self.buffer)

    def _check_devices(self) -> None:
        for name in self.devices:
            if name not in DEVICES:
                raise ConfigError(f"no device is called {name!r}: there are {', '.join(DEVICES)}")
            if self.devices.count(name) > 1 and not DEVICES[name].several:
                raise ConfigError(f"{self.devices.count(name)} devices {name!r}: a guest can have one")
        if self.disks and "storvsc" not in self.devices:
            raise ConfigError("disks need the device storvsc")
        if len(self.nets) > self.devices.count("netvsc"):
            raise ConfigError(f"{len(self.nets)} networks need as many devices netvsc")

    def _check_sizing(self) -> None:
        limits = self.limits
        if limits is None:
            return
        if limits.minimum > self.memory:
            raise ConfigError(f"min={limits.minimum >> 20}M of memory: more than the {self.memory >> 20} MiB at boot")
        if limits.minimum < MIB:
            raise ConfigError(f"min={limits.minimum} bytes of memory: at least 1M")
        if limits.buffer < 1:
            raise ConfigError(f"buffer={limits.buffer}%: at least 1%")
        if "hv-balloon" not in self.devices:
            raise ConfigError("automatic sizing needs the balloon device")
        if not self.status_report:
            raise ConfigError("automatic sizing needs status reports: omit --no-status-report")

    def _check_growth(self) -> None:
        if self.maximum_memory < self.memory:
            raise ConfigError(
                f"at most {self.maximum_memory >> 20} MiB of memory: less than the {self.memory >> 20} MiB at boot"
            )
        if self.maximum_memory > MAX_MEMORY:
            raise ConfigError(f"max={self.maximum_memory >> 30}G of memory: pyvmm goes up to {MAX_MEMORY >> 30} GiB")
        if self.maximum_memory % 4096:
            raise ConfigError(f"at most {self.maximum_memory} bytes of memory: not a multiple of 4 KiB")
        if self.maximum_memory > self.memory and "hv-balloon" not in self.devices:
            raise ConfigError("memory beyond the boot size (max=) needs the balloon device")
        if self.memory % self.mem_backend.page_size:
            pages = f"{self.mem_backend.page_size >> 20} MiB huge pages"
            raise ConfigError(f"{self.memory >> 20} MiB of memory: not a multiple of the backend's {pages}")
        if self.slots is not None and not 1 <= self.slots <= HOT_ADD_SLOTS.size:
            raise ConfigError(f"{self.slots} memory slots: 1 to {HOT_ADD_SLOTS.size}")
        if not 4096 <= self.balloon_piece <= 32 << 30:
            raise ConfigError(f"pieces of {self.balloon_piece} bytes: 4 KiB to 32 GiB")
