"""QMP commands that query and control a running machine.

Source: QEMU qapi/{control,misc,machine,run-state}.json for names, arguments and replies. The modules
imported here declare more commands; importing this one declares them all.
"""

from __future__ import annotations

from typing import Literal

from pyvmm.control import (
    console,
    cover,
    debug,
    devices,
    disks,
    faults,
    guest,
    hmp,
    integration,
    nets,
    observe,
    pressure,
    schema,
    vsock,
)
from pyvmm.control.errors import CommandNotFound, ControlError
from pyvmm.control.protocol import VERSION
from pyvmm.control.table import COMMANDS, Argument, Command, MonitoredMachine, Reply, command, dispatch
from pyvmm.qapi import (
    BalloonInfo,
    BalloonReply,
    CommandInfo,
    Empty,
    HvBalloonInfo,
    MachineInfo,
    NameInfo,
    PageMap,
    StatusInfo,
    VersionInfo,
    VmbusChannelInfo,
)

__all__ = [
    "COMMANDS",
    "Argument",
    "Command",
    "MonitoredMachine",
    "Reply",
    "command",
    "console",
    "cover",
    "debug",
    "devices",
    "disks",
    "dispatch",
    "faults",
    "guest",
    "integration",
    "nets",
    "observe",
    "pressure",
    "schema",
    "vsock",
]


@command("qmp_capabilities")
def qmp_capabilities(machine: MonitoredMachine) -> Empty:
    """List the command in `query-commands`; the session answers it before it is dispatched here."""
    raise CommandNotFound("Capabilities negotiation is already complete, command ignored")


@command("query-version")
def query_version(machine: MonitoredMachine) -> VersionInfo:
    """Return pyvmm's version, in QEMU's form."""
    return VERSION


@command("query-commands")
def query_commands(machine: MonitoredMachine) -> list[CommandInfo]:
    """Return the names of all commands."""
    return [{"name": name} for name in sorted(COMMANDS)]


@command("query-name")
def query_name(machine: MonitoredMachine) -> NameInfo:
    """Return the machine's name, `pyvmm run --name`."""
    return {"name": machine.name} if machine.name else {}


@command("query-status")
def query_status(machine: MonitoredMachine) -> StatusInfo:
    """Return the machine's state, and whether its vCPUs run."""
    status = machine.status()
    return {"running": status == "running", "status": status}


@command("x-status")
def status(machine: MonitoredMachine) -> MachineInfo:
    """Return everything that `pyvmm status` shows. Not in QEMU."""
    return machine.describe()


@command("x-query-vmbus")
def query_vmbus(machine: MonitoredMachine) -> list[VmbusChannelInfo]:
    """Return the VMBus channels with their counters. Not in QEMU."""
    return machine.info_vmbus()


@command("x-query-map")
def query_map(machine: MonitoredMachine) -> PageMap:
    """Return who owns which page of the guest's address space: `spans` of RAM and of the hot-add window without gaps,
    `special` pages within them. `coarse`: there are so many spans that each tells who owns most of it.
    """
    return machine.page_map()


@command("stop")
def stop(machine: MonitoredMachine) -> Empty:
    """Pause the vCPUs; without effect on a machine that is not running."""
    if machine.status() == "running":
        machine.pause()
    return {}


@command("cont")
def cont(machine: MonitoredMachine) -> Empty:
    """Let a paused machine run on; without effect on one that runs."""
    match machine.status():
        case "running":
            pass
        case "shutdown" | "internal-error" | "guest-panicked":
            raise ControlError("Resetting the Virtual Machine is required")
        case "debug":
            raise ControlError("A debugger has stopped the machine: continue there, or detach it")
        case _:
            machine.resume()
    return {}


@command("system_reset")
def system_reset(machine: MonitoredMachine) -> Empty:
    """Reset the machine: the guest boots again from its kernel."""
    machine.reset()
    return {}


@command("system_powerdown")
def system_powerdown(machine: MonitoredMachine) -> Empty:
    """Request a shutdown of the guest. It may not follow, which the reply does not show."""
    machine.powerdown()
    return {}


@command("quit")
def quit(machine: MonitoredMachine) -> Empty:
    """End the machine at once, as the power switch would."""
    machine.quit()
    return {}


_PANIC_ACTIONS: dict[str, Literal["stop", "keep", "auto"]] = {"none": "keep", "shutdown": "stop", "x-auto": "auto"}
_REBOOT_ACTIONS = {"reset": True, "shutdown": False}


@command("set-action", reboot=Argument(str, optional=True), panic=Argument(str, optional=True))
def set_action(machine: MonitoredMachine, reboot: str = "", panic: str = "") -> Empty:
    """Set the action after a guest's reset and panic. QEMU's `none` and `shutdown` are `--on-panic keep` and `stop`;
    `x-auto` is ours, and the default.
    """
    for name, value, known in (("reboot", reboot, _REBOOT_ACTIONS), ("panic", panic, _PANIC_ACTIONS)):
        if value and value not in known:
            raise ControlError(f"Parameter '{name}' does not accept value '{value}': it takes {', '.join(known)}")
    if panic or reboot:
        machine.set_action(_PANIC_ACTIONS.get(panic), _REBOOT_ACTIONS.get(reboot))
    return {}


@command("balloon", value=int)
def balloon(machine: MonitoredMachine, value: int) -> Empty:
    """Set the balloon's target. X_BALLOON_TARGET and the reply to `x-balloon` give the size that will be reached."""
    x_balloon(machine, value)
    return {}


@command("x-balloon", value=int)
def x_balloon(machine: MonitoredMachine, value: int) -> BalloonReply:
    """Set the balloon's target; the reply gives what will be reached, and why if that is not `value`. Not in QEMU."""
    if value <= 0:
        raise ControlError("Parameter 'value' expects a size")
    return machine.balloon_set(value)


@command("query-balloon")
def query_balloon(machine: MonitoredMachine) -> BalloonInfo:
    """Return the guest's current size in bytes, without what the balloon holds."""
    return {"actual": machine.balloon_actual()}


@command("query-hv-balloon-status-report")
def query_hv_balloon_status_report(machine: MonitoredMachine) -> HvBalloonInfo:
    """Return the memory that the guest last reported as committed and available, in bytes."""
    report = machine.hv_balloon_report()
    if report is None:
        raise ControlError("no guest memory status report received yet")
    return report


@command("human-monitor-command", command_line=str, cpu_index=Argument(int, optional=True))
def human_monitor_command(machine: MonitoredMachine, command_line: str, cpu_index: int = 0) -> str:
    """Run a line of the human monitor and return its output, lines ended by `\\r\\n` as by QEMU.

    No command uses `cpu-index` yet.
    """
    if not 0 <= cpu_index < len(machine.info_cpus()):
        raise ControlError("Parameter 'cpu-index' expects a CPU number")
    return hmp.execute(machine, command_line).replace("\n", "\r\n")
