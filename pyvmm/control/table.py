"""The table of commands: their declaration, the check of their arguments, and the machine's interface to them.

Source: QEMU qapi visitors for the texts of argument errors. A command is a function of the machine and of its checked
arguments; the modules beside this one (`commands`, `devices`, `schema`, ...) declare them:

    @command("x-balloon", value=int)
    def x_balloon(machine: MonitoredMachine, value: int) -> BalloonReply: ...

Types of replies are in `pyvmm.qapi`; the schema reads them from the function. `Reply` stands for one without a type.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_origin

from pyvmm.control.errors import CommandNotFound, ControlError, DeviceNotActive, DeviceNotFound
from pyvmm.cover_sites import Place
from pyvmm.disks.image import Image
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError, HostError, NotActiveError, NotFoundError, PyvmmError
from pyvmm.qapi import (
    BalloonReply,
    BlockInfo,
    BlockStats,
    CardAddresses,
    CoverInfo,
    FaultInfo,
    GuestFacts,
    HvBalloonInfo,
    KvpInfo,
    MachineInfo,
    MemoryDeviceInfo,
    NetInfo,
    PageMap,
    PressureInfo,
    RunState,
    RxFilterInfo,
    VmbusChannelInfo,
)

Reply = Any


class FaultRules(Protocol):
    """The rules of a machine (pyvmm.faults.FaultSet) as the monitor uses them."""

    def add_text(self, rule: str) -> int:
        """Add a rule, or a named fault; return its number. Raises ConfigError."""

    def remove(self, fault: int) -> None:
        """Remove a fault by its number. Raises ConfigError."""

    def info(self) -> list[FaultInfo]:
        """Return the faults in force."""


class Integration(Protocol):
    """The guest's integration services as the monitor uses them. Each raises ConfigError without its device."""

    def kvp_info(self) -> KvpInfo:
        """Return all values that guest and host have exchanged."""

    def kvp_set(self, key: str, value: str | None) -> None:
        """Set a value in the guest, or delete it."""

    def addresses(self, card: str, done: Callable[[CardAddresses | str], object]) -> None:
        """Ask for a network card's addresses; `done` gets them, or why not. Raises NotFoundError, too."""

    def set_addresses(self, card: str, wanted: CardAddresses, done: Callable[[str], object]) -> None:
        """Set a network card's addresses; `done` gets "" or why it failed. Raises NotFoundError, too."""

    def facts(self) -> GuestFacts | None:
        """Return what the guest tells of itself."""

    def freeze(self, seconds: float, done: Callable[[str], object]) -> None:
        """Freeze the guest's file systems; `done` gets "" or why it failed."""

    def thaw(self, done: Callable[[str], object]) -> None:
        """Thaw the guest's file systems."""

    def file_start(
        self, folder: str, name: str, size: int, *, overwrite: bool, create: bool, done: Callable[[str], object]
    ) -> None:
        """Begin a file in the guest."""

    def file_write(self, data: bytes, done: Callable[[str], object]) -> None:
        """Write its next bytes."""

    def file_end(self, complete: bool, done: Callable[[str], object]) -> None:
        """End it, or give it up."""

    def press(self, names: Sequence[str | int], hold: float) -> None:
        """Press keys together for `hold` seconds."""


class HotDisks(Protocol):
    """The disks of a machine (pyvmm.machine.disks) as the monitor uses them."""

    def add(self, spec: DiskSpec, open: Callable[[DiskSpec], Image]) -> None:
        """Add a disk; `fd` is its open file, or None to open it. Raises ConfigError."""

    def resize(self, id: str, size: int) -> None:
        """Change a disk's size. Raises ConfigError."""

    def info(self) -> list[BlockInfo]: ...

    def statistics(self) -> list[BlockStats]: ...


class NetworkCards(Protocol):
    """The machine's interface to its network cards."""

    def info(self) -> list[NetInfo]: ...

    def rx_filters(self) -> list[RxFilterInfo]:
        """Return which frames each network card lets pass to the guest."""

    def set_link(self, name: str, up: bool) -> None:
        """Plug in a network card's cable, or pull it out. Raises NotFoundError."""


class GuestAccess(Protocol):
    """The monitor's ways into the guest."""

    def execute(self, command: str, seconds: int, done: Callable[[dict[str, Any] | HostError], None]) -> None:
        """Run a shell command in the guest: `status`, `stdout`, `stderr` (bytes), `truncated`."""

    def connect(self, port: int, attach: Callable[[], socket.socket | None], failed: Callable[[str], None]) -> None:
        """Connect what `attach` returns to a port of the guest when that has accepted; or call `failed`."""

    def start_sessions(self, done: Callable[[int | PyvmmError], None], *, only_if_started: bool = False) -> None:
        """Start the guest's program for sessions; `done` gets its port, or the error that tells why there is none."""


class MonitoredMachine(Protocol):
    """The machine's interface to the monitor. Every call comes from the loop's thread."""

    name: str

    @property
    def guest(self) -> GuestAccess:
        """Return the ways into the guest."""

    def status(self) -> RunState: ...

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None: ...
    def powerdown(self) -> None: ...
    def quit(self) -> None: ...

    def balloon_set(self, size: int) -> BalloonReply:
        """Set the balloon's target to `size` bytes; returns the data of X_BALLOON_TARGET.

        Raises like `dispatch`.
        """

    def balloon_actual(self) -> int:
        """Return the guest's current size in bytes. Raises NotActiveError if the machine has no balloon."""

    def hv_balloon_report(self) -> HvBalloonInfo | None:
        """Return the guest's last status report; None before the first."""

    def pressure_info(self, count: int, since: float | None) -> PressureInfo:
        """Return the guest's memory pressure, and its last `count` reports, or those after `since` (wall clock)."""

    def set_autosize(self, on: bool) -> None:
        """Resume or suspend automatic sizing. Raises ConfigError where there is none."""

    @property
    def fault_rules(self) -> Callable[[], FaultRules]:
        """Return what makes the machine's fault rules, or finds them. It raises ConfigError where there are none."""

    def set_action(self, panic: Literal["stop", "keep", "auto"] | None, reboot: bool | None) -> None:
        """Set the action after a panic, and whether a reset restarts the guest; None leaves a setting unchanged."""

    def describe(self) -> MachineInfo:
        """Return everything that `pyvmm status` shows, ready for JSON."""

    def info_vmbus(self) -> list[VmbusChannelInfo]:
        """Return the VMBus channels."""

    def page_map(self) -> PageMap:
        """Return who owns which page of the guest's address space."""

    def info_cpus(self) -> list[int]:
        """Return each vCPU's thread id on the host, 0 if it does not run."""

    def info_devices(self) -> list[dict[str, str]]:
        """Return the devices on the VMBus: `driver`, `id` ("" if it has none), `path`."""

    def info_memory_devices(self) -> list[MemoryDeviceInfo]:
        """Return the memory devices."""

    def info_memory_size(self) -> tuple[int, int]:
        """Return the bytes of boot RAM and of hot-added memory."""

    def info_consoles(self) -> list[tuple[str, str]]:
        """Return label and file name of each serial port's backend."""

    def nets(self) -> NetworkCards:
        """Return what describes network cards and moves their cables."""

    def add_device(self, driver: str, id: str) -> None:
        """Offer a VMBus device again. Raises ConfigError."""

    def disks(self) -> HotDisks:
        """Return what adds, resizes and describes disks."""

    def remove_device(self, id: str) -> None:
        """Rescind a VMBus device by id or path; DEVICE_DELETED follows when the guest has released it."""

    def console_since(self, offset: int) -> tuple[int, bytes]:
        """Return console output from byte `offset` on, as far as it is kept, and the number of its first byte."""

    def check_debugger(self) -> None:
        """Raise ConfigError if no debugger can be served now."""

    def debug(self, connection: socket.socket, monitor: Callable[[str], str]) -> None:
        """Serve the debugger at `connection`; its `monitor` commands are passed to `monitor`. Raises ConfigError."""

    def cover_start(
        self, module: str, build_id: str, sites: Sequence[Place | None], exits: Sequence[int]
    ) -> CoverInfo:
        """Place a breakpoint for each block of a module. Raises ConfigError."""

    def cover_info(self) -> list[CoverInfo]:
        """Return what was seen of the watched modules."""

    def cover_stop(self, module: str | None) -> list[CoverInfo]:
        """Take out the breakpoints of a module, or of all; return what was seen. Raises ConfigError."""

    @property
    def integration(self) -> Integration:
        """The guest's integration services."""

    def on_event(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Call `listener(name, data)` for each QMP event, on the loop's thread."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One member of `arguments`. `type` is int, str or bool, or a list of anything."""

    type: Any
    optional: bool = False

    def check(self, name: str, value: object) -> Any:
        """Return `value`. Raises ControlError with QEMU's text if its type is wrong."""
        if get_origin(self.type) is list:
            if type(value) is not list:
                raise ControlError(f"Invalid parameter type for '{name}', expected: array")
            return value
        fits = type(value) is self.type and not (self.type is int and not -(1 << 63) <= value < 1 << 63)  # type: ignore[operator]
        if not fits:
            word = {int: "integer", str: "string", bool: "boolean"}[self.type]
            raise ControlError(f"Invalid parameter type for '{name}', expected: {word}")
        return value


@dataclass(frozen=True, slots=True)
class Command:
    """One entry of `query-commands`."""

    name: str
    run: Callable[..., Reply]
    arguments: Mapping[str, Argument]
    open: bool = False  # accepts other arguments too, as device_add does: passed as `more`
    of_client: bool = False  # is passed the client that sent it

    def call(self, machine: MonitoredMachine, given: Mapping[str, Any], client: object = None) -> Reply:
        """Check the arguments in `given` and run the command. Raises ControlError."""
        checked: dict[str, Any] = {}
        for name, argument in self.arguments.items():
            if name in given:
                if self.open and type(given[name]) is not argument.type:
                    value = None  # QEMU's device_add treats a member of another type as absent
                else:
                    value = argument.check(name, given[name])
            else:
                value = None
            if value is not None:
                checked[name.replace("-", "_")] = value
            elif not argument.optional:
                raise ControlError(f"Parameter '{name}' is missing")
        for name in given:
            if name not in self.arguments and not self.open:
                raise ControlError(f"Parameter '{name}' is unexpected")
        if self.open:
            checked["more"] = {name: value for name, value in given.items() if name not in self.arguments}
        return self.run(machine, client, **checked) if self.of_client else self.run(machine, **checked)


COMMANDS: dict[str, Command] = {}


def command(
    name: str, /, *, open: bool = False, of_client: bool = False, **arguments: type | Argument
) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Declare a command. `_` in argument names stands for QMP's `-`. `of_client`: it is passed the client too."""

    def register(run: Callable[..., Reply]) -> Callable[..., Reply]:
        assert name not in COMMANDS, f"QMP command {name} declared twice"
        made = {k.replace("_", "-"): v if isinstance(v, Argument) else Argument(v) for k, v in arguments.items()}
        COMMANDS[name] = Command(name, run, made, open, of_client)
        return run

    return register


def dispatch(machine: MonitoredMachine, name: str, arguments: Mapping[str, Any], client: object = None) -> Reply:
    """Run the command called `name` and return its reply. Raises ControlError, nothing else a client could cause.

    `client` is the connection that sent it, for commands that act on the connection.
    """
    found = COMMANDS.get(name)
    if found is None:
        raise CommandNotFound(f"The command {name} has not been found")
    try:
        return found.call(machine, arguments, client)
    except NotActiveError as error:
        raise DeviceNotActive(str(error)) from error
    except NotFoundError as error:
        raise DeviceNotFound(str(error)) from error
    except (ConfigError, HostError) as error:
        raise ControlError(str(error)) from error
