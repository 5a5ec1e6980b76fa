"""What can be asked of a running machine through QMP.

Source: QEMU qapi/{control,misc,machine,run-state}.json for names, arguments and replies; qapi visitors for the texts
of argument errors. A command is a function of the machine and of its checked arguments:

    @command("balloon", value=int)
    def balloon(machine: Controlled, value: int) -> Any: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pyvmm.control import hmp
from pyvmm.control.errors import CommandNotFound, ControlError, DeviceNotActive
from pyvmm.control.protocol import VERSION
from pyvmm.errors import ConfigError, HostError, NotActiveError

Reply = Any


class Controlled(Protocol):
    """The machine, as the monitor sees it. Every call comes from the loop's thread."""

    name: str

    def status(self) -> str:
        """QEMU's RunState: running, paused, shutdown, guest-panicked, prelaunch, internal-error."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None: ...
    def powerdown(self) -> None: ...
    def quit(self) -> None: ...

    def balloon_set(self, size: int) -> dict[str, Any]:
        """Ask the guest to live in `size` bytes: `{"target", "will-reach", "reason"}`. Raises like `dispatch`."""

    def balloon_actual(self) -> int:
        """Bytes the guest has now. Raises NotActiveError if the machine has no balloon."""

    def hv_balloon_report(self) -> dict[str, Any] | None:
        """The guest's last status report: `committed`, `available`, bytes. None before the first."""

    def describe(self) -> dict[str, Any]:
        """Everything `pyvmm status` shows, ready for JSON."""

    def info_vmbus(self) -> list[dict[str, Any]]:
        """A dict for each channel of the VMBus."""

    def on_event(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Call `listener(name, data)` for each QMP event, on the loop's thread."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One member of `arguments`. `type` is int, str or bool."""

    type: type
    optional: bool = False

    def check(self, name: str, value: object) -> Any:
        """`value` itself, or ControlError in QEMU's words."""
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

    def call(self, machine: Controlled, given: Mapping[str, Any]) -> Reply:
        """Check `given` and run. Raises ControlError."""
        checked: dict[str, Any] = {}
        for name, argument in self.arguments.items():
            if name in given:
                checked[name.replace("-", "_")] = argument.check(name, given[name])
            elif not argument.optional:
                raise ControlError(f"Parameter '{name}' is missing")
        for name in given:
            if name not in self.arguments:
                raise ControlError(f"Parameter '{name}' is unexpected")
        return self.run(machine, **checked)


COMMANDS: dict[str, Command] = {}


def command(name: str, **arguments: type | Argument) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Register a command. `_` in the names of arguments stands for QMP's `-`."""

    def register(run: Callable[..., Reply]) -> Callable[..., Reply]:
        assert name not in COMMANDS, f"QMP command {name} declared twice"
        made = {k.replace("_", "-"): v if isinstance(v, Argument) else Argument(v) for k, v in arguments.items()}
        COMMANDS[name] = Command(name, run, made)
        return run

    return register


def dispatch(machine: Controlled, name: str, arguments: Mapping[str, Any]) -> Reply:
    """Run the command called `name` and return its reply. Raises ControlError, nothing else a client could cause."""
    found = COMMANDS.get(name)
    if found is None:
        raise CommandNotFound(f"The command {name} has not been found")
    try:
        return found.call(machine, arguments)
    except NotActiveError as error:
        raise DeviceNotActive(str(error)) from error
    except (ConfigError, HostError) as error:
        raise ControlError(str(error)) from error


@command("qmp_capabilities")
def qmp_capabilities(machine: Controlled) -> Reply:
    """Listed for `query-commands`; the session answers it before it gets here."""
    raise CommandNotFound("Capabilities negotiation is already complete, command ignored")


@command("query-version")
def query_version(machine: Controlled) -> Reply:
    return VERSION


@command("query-commands")
def query_commands(machine: Controlled) -> Reply:
    return [{"name": name} for name in sorted(COMMANDS)]


@command("query-name")
def query_name(machine: Controlled) -> Reply:
    return {"name": machine.name} if machine.name else {}


@command("query-status")
def query_status(machine: Controlled) -> Reply:
    status = machine.status()
    return {"running": status == "running", "status": status}


@command("x-status")
def status(machine: Controlled) -> Reply:
    """All that `pyvmm status` shows. Not in QEMU."""
    return machine.describe() | {"status": machine.status()}


@command("x-query-vmbus")
def query_vmbus(machine: Controlled) -> Reply:
    """The channels of the VMBus with their counters. Not in QEMU."""
    return machine.info_vmbus()


@command("stop")
def stop(machine: Controlled) -> Reply:
    """Pause the vCPUs; nothing happens to a machine that is not running."""
    if machine.status() == "running":
        machine.pause()
    return {}


@command("cont")
def cont(machine: Controlled) -> Reply:
    match machine.status():
        case "running":
            pass
        case "shutdown" | "internal-error" | "guest-panicked":
            raise ControlError("Resetting the Virtual Machine is required")
        case _:
            machine.resume()
    return {}


@command("system_reset")
def system_reset(machine: Controlled) -> Reply:
    machine.reset()
    return {}


@command("system_powerdown")
def system_powerdown(machine: Controlled) -> Reply:
    """Ask the guest to power itself off. The reply says nothing of whether it will."""
    machine.powerdown()
    return {}


@command("quit")
def quit(machine: Controlled) -> Reply:
    machine.quit()
    return {}


@command("balloon", value=int)
def balloon(machine: Controlled, value: int) -> Reply:
    """QEMU replies `{}`; the machine's reply also says what will be reached, and why if that is not `value`."""
    if value <= 0:
        raise ControlError("Parameter 'value' expects a size")
    return machine.balloon_set(value)


@command("query-balloon")
def query_balloon(machine: Controlled) -> Reply:
    return {"actual": machine.balloon_actual()}


@command("query-hv-balloon-status-report")
def query_hv_balloon_status_report(machine: Controlled) -> Reply:
    report = machine.hv_balloon_report()
    if report is None:
        raise ControlError("no guest memory status report received yet")
    return report


@command("human-monitor-command", command_line=str, cpu_index=Argument(int, optional=True))
def human_monitor_command(machine: Controlled, command_line: str, cpu_index: int = 0) -> Reply:
    """Run a line of the human monitor and return what it printed. `cpu-index` matters to no command there is yet."""
    return hmp.execute(machine, command_line)
