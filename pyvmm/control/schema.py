"""`query-qmp-schema`: what this monitor offers, in the form by which clients ask QEMU.

Source: QEMU qapi/introspect.json for the form; qapi/{control,machine,run-state,qdev,char,misc}.json for the types.
Commands and their arguments come from the table; what they return, and the events, is written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyvmm.control.table import COMMANDS, Controlled, Reply, command

BUILTIN = {"str": "string", "int": "int", "number": "number", "bool": "boolean", "any": "value"}

ENUMS = {
    "RunState": ("prelaunch", "running", "paused", "shutdown", "guest-panicked", "internal-error"),
    "ShutdownCause": (
        "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "guest-shutdown", "guest-reset",
        "guest-panic",
    ),
    "GuestPanicAction": ("pause", "poweroff", "run"),
    "GuestPanicInformationType": ("hyper-v",),
    "MemoryDeviceInfoKind": ("hv-balloon",),
    "SysEmuTarget": ("x86_64",),
    "QMPCapability": (),
}  # fmt: skip

STRUCTS: dict[str, dict[str, str]] = {
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "CommandInfo": {"name": "str"},
    "NameInfo": {"*name": "str"},
    "KvmInfo": {"enabled": "bool", "present": "bool"},
    "TargetInfo": {"arch": "SysEmuTarget"},
    "StatusInfo": {"running": "bool", "status": "RunState"},
    "BalloonInfo": {"actual": "int"},
    "HvBalloonInfo": {"committed": "int", "available": "int"},
    "MemoryInfo": {"base-memory": "int", "*plugged-memory": "int"},
    "MemoryDeviceInfo": {"type": "MemoryDeviceInfoKind", "data": "HvBalloonDeviceInfo"},
    "HvBalloonDeviceInfo": {"*id": "str", "*memaddr": "int", "max-size": "int", "*memdev": "str"},
    "CpuInstanceProperties": {"*socket-id": "int", "*core-id": "int", "*thread-id": "int"},
    "CpuInfoFast": {
        "cpu-index": "int",
        "qom-path": "str",
        "thread-id": "int",
        "*props": "CpuInstanceProperties",
        "target": "SysEmuTarget",
    },
    "ChardevInfo": {"label": "str", "filename": "str", "frontend-open": "bool"},
    "GuestPanicInformation": {
        "type": "GuestPanicInformationType",
        **{f"arg{number}": "int" for number in range(1, 6)},
    },
    # Ours
    "BalloonReply": {"target": "int", "will-reach": "int", "reason": "str"},
    "ExecuteReply": {"status": "int", "stdout": "str", "stderr": "str", "truncated": "bool"},
}

RETURNS = {
    "query-version": "VersionInfo",
    "query-commands": "[CommandInfo]",
    "query-name": "NameInfo",
    "query-kvm": "KvmInfo",
    "query-target": "TargetInfo",
    "query-status": "StatusInfo",
    "x-balloon": "BalloonReply",
    "query-balloon": "BalloonInfo",
    "query-hv-balloon-status-report": "HvBalloonInfo",
    "query-memory-size-summary": "MemoryInfo",
    "query-memory-devices": "[MemoryDeviceInfo]",
    "query-cpus-fast": "[CpuInfoFast]",
    "query-chardev": "[ChardevInfo]",
    "query-qmp-schema": "any",
    "human-monitor-command": "str",
    "x-execute": "ExecuteReply",
}
"""Types of the replies. Commands that are not here and begin with `x-` return something; others an empty object."""

EVENTS: dict[str, dict[str, str]] = {
    "SHUTDOWN": {"guest": "bool", "reason": "ShutdownCause"},
    "RESET": {"guest": "bool", "reason": "ShutdownCause"},
    "POWERDOWN": {},
    "STOP": {},
    "RESUME": {},
    "GUEST_PANICKED": {"action": "GuestPanicAction", "*info": "GuestPanicInformation", "*x-text": "str"},
    "GUEST_CRASHLOADED": {"action": "GuestPanicAction", "*info": "GuestPanicInformation"},
    "X_NOTICE": {"text": "str"},
    "BALLOON_CHANGE": {"actual": "int"},
    "HV_BALLOON_STATUS_REPORT": {"committed": "int", "available": "int"},
    "X_BALLOON_TARGET": {"target": "int", "will-reach": "int", "reason": "str"},
    "X_BALLOON_FINISHED": {"target": "int", "actual": "int", "reason": "str", "final": "bool"},
    "X_AUTOSIZE": {"target": "int", "reason": "str", "demand": "int", "pressure": "int", "limited": "bool"},
    "X_AUTOSIZE_CHANGE": {"enabled": "bool"},
    "MEMORY_DEVICE_SIZE_CHANGE": {"*id": "str", "size": "int", "qom-path": "str"},
    "DEVICE_DELETED": {"*device": "str", "path": "str"},
    "X_TRACE": {"dropped": "int", "events": "[any]"},
    "X_CONSOLE": {"begin": "int", "end": "int", "text": "str"},
}

_IN_SESSION = {"qmp_capabilities": {"*enable": "[QMPCapability]"}}
"""Arguments of commands that the session itself answers."""

_EMPTY = "q_empty"
_ARGUMENT_TYPES = {int: "int", str: "str", bool: "bool"}


def schema() -> list[dict[str, Any]]:
    """One SchemaInfo for each command, event and type. Type names are QAPI's, so that people can read it."""
    return [*_commands(), *_events(), *_types()]


def _commands() -> Iterator[dict[str, Any]]:
    for name, each in sorted(COMMANDS.items()):
        arguments = {
            ("*" if argument.optional else "") + key: _ARGUMENT_TYPES[argument.type]
            for key, argument in each.arguments.items()
        } | _IN_SESSION.get(name, {})
        argument_type = f"q_obj_{name}-arg" if arguments else _EMPTY
        if arguments:
            yield _object(argument_type, arguments)
        returns = RETURNS.get(name, "any" if name.startswith("x-") else _EMPTY)
        yield {"name": name, "meta-type": "command", "arg-type": argument_type, "ret-type": returns}


def _events() -> Iterator[dict[str, Any]]:
    for name, data in EVENTS.items():
        argument_type = f"q_obj_{name}-arg" if data else _EMPTY
        if data:
            yield _object(argument_type, data)
        yield {"name": name, "meta-type": "event", "arg-type": argument_type}


def _types() -> Iterator[dict[str, Any]]:
    yield _object(_EMPTY, {})
    for name, json_type in BUILTIN.items():
        yield {"name": name, "meta-type": "builtin", "json-type": json_type}
    for name, values in ENUMS.items():
        named = [{"name": value} for value in values]
        yield {"name": name, "meta-type": "enum", "members": named, "values": list(values)}
    for name, members_of in STRUCTS.items():
        yield _object(name, members_of)
    members = [each for table in (EVENTS, _IN_SESSION) for data in table.values() for each in data.values()]
    for name in sorted({each for each in (*RETURNS.values(), *members) if each.startswith("[")}):
        yield {"name": name, "meta-type": "array", "element-type": name[1:-1]}


def _object(name: str, members: Mapping[str, str]) -> dict[str, Any]:
    made: list[dict[str, Any]] = []
    for key, type in members.items():
        member: dict[str, Any] = {"name": key.removeprefix("*"), "type": type}
        if key.startswith("*"):
            member["default"] = None
        made.append(member)
    return {"name": name, "meta-type": "object", "members": made}


@command("query-qmp-schema")
def query_qmp_schema(machine: Controlled) -> Reply:
    return schema()
