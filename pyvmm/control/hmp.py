"""The human monitor: commands for people, at Ctrl-A c and through `human-monitor-command`.

Source: QEMU hmp-commands.hx, hmp-commands-info.hx and monitor/hmp-cmds.c for names and the form of the output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyvmm.control.errors import ControlError
from pyvmm.control.protocol import VERSION
from pyvmm.control.table import MonitoredMachine
from pyvmm.errors import ConfigError, HostError
from pyvmm.sizes import format_size, parse_size

Run = Callable[[MonitoredMachine, list[str]], str]

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # QEMU util/id.c, id_wellformed()


@dataclass(frozen=True, slots=True)
class Line:
    """One command of the human monitor: its names (`help` shows the first), its arguments and its function."""

    names: tuple[str, ...]
    usage: str
    help: str
    run: Run
    words: tuple[int, int] = (0, 0)  # least and most words of arguments


LINES: list[Line] = []
INFO: list[Line] = []


def _line(
    table: list[Line], name: str, help: str, usage: str = "", words: tuple[int, int] = (0, 0)
) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        table.append(Line(tuple(name.split("|")), usage, help, run, words))
        return run

    return register


def execute(machine: MonitoredMachine, line: str) -> str:
    """Run `line` and return its output, ended by a newline unless empty. Nothing that a user can cause raises."""
    words = line.split()
    if not words:
        return ""
    try:
        return _run(machine, LINES, words, "")
    except (ControlError, ConfigError, HostError) as error:
        return f"Error: {error}\n"


def _run(machine: MonitoredMachine, table: list[Line], words: list[str], prefix: str) -> str:
    found = next((each for each in table if words[0] in each.names), None)
    if found is None:
        return f"unknown command: '{prefix}{words[0]}'\n"
    few, many = found.words
    if not few <= len(words) - 1 <= many:
        usage = f"{prefix}{found.names[0]} {found.usage}".rstrip()
        return f"usage: {usage}\n"
    return found.run(machine, words[1:])


def names() -> list[str]:
    """Return every command by its full name, `info` ones included; for completion."""
    return sorted([each.names[0] for each in LINES] + [f"info {each.names[0]}" for each in INFO])


def _help_of(table: list[Line], prefix: str = "") -> str:
    rows = [(f"{prefix}{'|'.join(each.names)} {each.usage}".rstrip(), each.help) for each in table]
    width = max(len(left) for left, _ in rows)
    return "".join(f"{left:<{width}}  {right}\n" for left, right in rows)


@_line(LINES, "help|?", "show the commands, or what one does", "[command]", (0, 1))
def _help(machine: MonitoredMachine, words: list[str]) -> str:
    if words and words[0] == "info":
        return _help_of(INFO, "info ")
    shown = [each for each in LINES if not words or words[0] in each.names]
    return _help_of(sorted(shown, key=lambda each: each.names)) if shown else f"unknown command: '{words[0]}'\n"


@_line(LINES, "info", "show information about the machine", "[subject]", (0, 1))
def _info(machine: MonitoredMachine, words: list[str]) -> str:
    return _run(machine, INFO, words, "info ") if words else _help_of(INFO, "info ")


@_line(LINES, "balloon", "set the guest's memory size (MiB, or with a unit: 1.5G)", "size", (1, 1))
def _balloon(machine: MonitoredMachine, words: list[str]) -> str:
    size = parse_size(words[0])
    if size <= 0:
        raise ControlError("Parameter 'value' expects a size")
    reply = machine.balloon_set(size)
    reach = reply.get("will-reach", size)
    if reach == size:
        return ""
    reason = f": {reply['reason']}" if reply.get("reason") else ""
    return f"balloon: will reach {format_size(reach)}{reason}\n"


@_line(LINES, "stop|s", "pause the machine")
def _stop(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "stop")


@_line(LINES, "cont|c", "resume a paused machine")
def _cont(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "cont")


@_line(LINES, "system_reset", "reset the machine, as its reset button would")
def _reset(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "system_reset")


@_line(LINES, "system_powerdown", "ask the guest to power off")
def _powerdown(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "system_powerdown")


@_line(LINES, "quit|q", "end the machine at once")
def _quit(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "quit")


@_line(LINES, "device_add", "offer a VMBus device again", "driver[,id=name]", (1, 1))
def _device_add(machine: MonitoredMachine, words: list[str]) -> str:
    driver, *options = words[0].split(",")
    given: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        given[name] = value
    if "id" in given and not _IDENTIFIER.fullmatch(given["id"]):  # through QMP, QEMU accepts any text
        raise ControlError("Parameter 'id' expects an identifier")
    return _qmp(machine, "device_add", given | {"driver": driver})


@_line(LINES, "device_del", "rescind a VMBus device", "id", (1, 1))
def _device_del(machine: MonitoredMachine, words: list[str]) -> str:
    return _qmp(machine, "device_del", {"id": words[0]})


@_line(LINES, "sendkey", "press keys together, for so many milliseconds (default: 100)", "keys [hold_ms]", (1, 2))
def _sendkey(machine: MonitoredMachine, words: list[str]) -> str:
    keys = [_key(each) for each in words[0].split("-")]
    hold = {"hold-time": int(words[1])} if words[1:] and words[1].isdecimal() else {}
    if words[1:] and not hold:
        raise ControlError("Parameter 'hold-time' expects a number")
    return _qmp(machine, "send-key", {"keys": keys} | hold)


def _key(word: str) -> dict[str, str | int]:
    """Return a QAPI KeyValue of a key's name, or of a make code such as 0x1e."""
    try:
        return {"type": "number", "data": int(word, 16)} if word.startswith("0x") else {"type": "qcode", "data": word}
    except ValueError:
        raise ControlError(f"invalid parameter: {word}") from None


@_line(LINES, "set_link", "plug in the cable of a network card, or pull it out", "name on|off", (2, 2))
def _set_link(machine: MonitoredMachine, words: list[str]) -> str:
    if words[1] not in ("on", "off"):
        raise ControlError("Parameter 'up' expects 'on' or 'off'")
    return _qmp(machine, "set_link", {"name": words[0], "up": words[1] == "on"})


def _qmp(machine: MonitoredMachine, name: str, arguments: dict[str, Any] | None = None) -> str:
    from pyvmm.control.commands import dispatch  # it imports this module, for human-monitor-command

    dispatch(machine, name, arguments or {})
    return ""


@_line(INFO, "balloon", "how much memory the guest has")
def _info_balloon(machine: MonitoredMachine, words: list[str]) -> str:
    return f"balloon: actual={machine.balloon_actual() >> 20}\n"


@_line(INFO, "hv-balloon", "the balloon's state and the guest's own report of its memory")
def _info_hv_balloon(machine: MonitoredMachine, words: list[str]) -> str:
    shown: dict[str, Any] = dict(machine.describe().get("balloon") or {})
    report = machine.hv_balloon_report()
    if report is not None:
        shown["guest report"] = report
    return _tree(shown) or "no hv-balloon device\n"


@_line(INFO, "status", "whether the machine runs")
def _info_status(machine: MonitoredMachine, words: list[str]) -> str:
    status = machine.status()
    if status in ("running", "paused"):
        return f"VM status: {status}\n"
    return f"VM status: paused ({status})\n"


@_line(INFO, "version", "the QEMU version whose monitor is implemented, and pyvmm's version")
def _info_version(machine: MonitoredMachine, words: list[str]) -> str:
    numbers = VERSION["qemu"]
    return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}{VERSION['package']}\n"


@_line(INFO, "network", "the network cards: links, addresses, counters")
def _info_network(machine: MonitoredMachine, words: list[str]) -> str:
    return "".join(f"{each['id']}:\n{_tree(each, '  ')}" for each in machine.nets().info()) or "no network cards\n"


@_line(INFO, "name", "the machine's name")
def _info_name(machine: MonitoredMachine, words: list[str]) -> str:
    return f"{machine.name}\n" if machine.name else ""


@_line(INFO, "vmbus", "the VMBus channels: state, rings, counters")
def _info_vmbus(machine: MonitoredMachine, words: list[str]) -> str:
    channels = machine.info_vmbus()
    return "".join(_channel(each) for each in channels) or "no VMBus channels\n"


def _channel(channel: Mapping[str, Any]) -> str:
    rest = dict(channel)
    relid, name, state = (rest.pop(key, "?") for key in ("relid", "name", "state"))
    rest = {key: rest.pop(key) for key in ("id", "path") if key in rest} | rest  # what device_del takes comes first
    return f"#{relid} {name}: {state}\n" + _tree(rest, "  ")


@_line(INFO, "memory-devices", "memory devices")
def _info_memory_devices(machine: MonitoredMachine, words: list[str]) -> str:
    lines = []
    for device in machine.info_memory_devices():
        data = device["data"]
        lines.append(f'Memory device [{device["type"]}]: "{data.get("id", "")}"\n')
        if "memaddr" in data:
            lines.append(f"  memaddr: {data['memaddr']:#x}\n")
        lines.append(f"  max-size: {data['max-size']}\n")
        if "memdev" in data:
            lines.append(f"  memdev: {data['memdev']}\n")
    return "".join(lines)


@_line(INFO, "memory_size_summary", "sizes of boot memory and of hot-added memory")
def _info_memory_size_summary(machine: MonitoredMachine, words: list[str]) -> str:
    base, plugged = machine.info_memory_size()
    return f"base memory: {base}\nplugged memory: {plugged}\n"


@_line(INFO, "cpus", "the virtual CPUs and their host threads")
def _info_cpus(machine: MonitoredMachine, words: list[str]) -> str:
    mark = ["*", *" " * 255]
    return "".join(f"{mark[n]} CPU #{n}: thread_id={each}\n" for n, each in enumerate(machine.info_cpus()))


@_line(INFO, "chardev", "the backends of the serial ports")
def _info_chardev(machine: MonitoredMachine, words: list[str]) -> str:
    return "".join(f"{label}: filename={place}\n" for label, place in machine.info_consoles())


@_line(INFO, "kvm", "whether KVM runs the machine")
def _info_kvm(machine: MonitoredMachine, words: list[str]) -> str:
    return "kvm support: enabled\n"


@_line(INFO, "qtree", "the machine's devices as a tree")
def _info_qtree(machine: MonitoredMachine, words: list[str]) -> str:
    channels = {each.get("path"): each for each in machine.info_vmbus()}
    lines = ["bus: main-system-bus\n", "  type System\n", '  dev: vmbus-bridge, id ""\n', "    bus: vmbus\n"]
    lines.append("      type vmbus\n")
    for device in machine.info_devices():
        lines.append(f'      dev: {device["driver"]}, id "{device["id"]}"\n')
        channel: Mapping[str, Any] = channels.get(device["path"], {})
        lines += [f"        {key} = {value}\n" for key, value in channel.items() if key not in device]
    return "".join(lines)


@_line(INFO, "machine", "the machine's full state, as in `pyvmm status --json`")
def _info_machine(machine: MonitoredMachine, words: list[str]) -> str:
    return _tree(machine.describe())


def _tree(value: Mapping[str, Any], indent: str = "") -> str:
    lines = []
    for key, each in value.items():
        if isinstance(each, dict):
            lines.append(f"{indent}{key}:\n{_tree(each, indent + '  ')}")
        elif isinstance(each, list) and any(isinstance(item, dict) for item in each):
            lines.append(f"{indent}{key}:\n")
            for number, item in enumerate(each):
                shown = item if isinstance(item, dict) else {"": item}
                title = shown.get("name", number)
                rest = {k: v for k, v in shown.items() if k != "name"}
                lines.append(f"{indent}  {title}\n{_tree(rest, indent + '    ')}")
        elif isinstance(each, list):
            lines.append(f"{indent}{key}: {' '.join(map(str, each)) or '-'}\n")
        elif each is not None:
            lines.append(f"{indent}{key}: {each}\n")
    return "".join(lines)
