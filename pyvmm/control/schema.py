"""The reply to `query-qmp-schema`: this monitor's commands, events and types, in QEMU's form.

Source: QEMU qapi/introspect.json for the form; qapi/{control,machine,run-state,qdev,char,misc}.json for the types.
Commands and their arguments come from the table, their replies' types from the functions' annotations, and the events
from `pyvmm.qapi`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from pyvmm.control.protocol import DeferredReply
from pyvmm.control.table import COMMANDS, MonitoredMachine, Reply, command
from pyvmm.qapi import ENUMS, EVENTS, Empty

BUILTIN = {"str": "string", "int": "int", "number": "number", "bool": "boolean", "null": "null", "any": "value"}

_IN_SESSION = {"qmp_capabilities": {"*enable": "[QMPCapability]"}}
"""Arguments of the commands that the session answers itself."""

_EMPTY = "q_empty"
_NAMES: dict[Any, str] = {int: "int", str: "str", bool: "bool", float: "number", Any: "any", Empty: _EMPTY}


class _Types:
    """Maps Python types to schema names; collects the types that the schema must list."""

    def __init__(self) -> None:
        self.structs: dict[str, dict[str, str]] = {}
        self.arrays: dict[str, str] = {}
        self.alternates: dict[str, str] = {}

    def name(self, type: Any) -> str:
        """Return QAPI's name of a type."""
        if type in _NAMES:
            return _NAMES[type]
        if get_origin(type) is DeferredReply:
            return self.name(get_args(type)[0])
        if get_origin(type) is list:
            element = self.name(get_args(type)[0])
            self.arrays[f"[{element}]"] = element
            return f"[{element}]"
        if get_origin(type) is dict:
            return "any"  # QAPI has no objects with free keys
        if get_origin(type) is UnionType:
            return self.nullable(next(each for each in get_args(type) if each is not NoneType))
        if get_origin(type) is Literal:
            return next(name for name, values in ENUMS.items() if values == get_args(type))
        assert is_typeddict(type), f"{type} has no name in the schema"
        name: str = type.__name__
        if name not in self.structs:
            self.structs[name] = self.members(type)
        return name

    def nullable(self, type: Any) -> str:
        """Return the name of the alternate of a type and null, in the form of QEMU's StrOrNull."""
        inner = self.name(type)
        name = f"{inner[0].upper()}{inner[1:]}OrNull"
        self.alternates[name] = inner
        return name

    def members(self, type: Any) -> dict[str, str]:
        """Return names and types of a TypedDict's members, `*` before optional ones."""
        made = {}
        for key, each in get_type_hints(type, include_extras=True).items():
            optional = get_origin(each) is NotRequired
            made["*" + key if optional else key] = self.name(get_args(each)[0] if optional else each)
        return made


def schema() -> list[dict[str, Any]]:
    """Return one SchemaInfo for each command, event and type. Type names are QAPI's, so that people can read it."""
    types = _Types()
    return [*_commands(types), *_events(types), *_listed(types)]


def _commands(types: _Types) -> Iterator[dict[str, Any]]:
    for name, each in sorted(COMMANDS.items()):
        arguments = {
            ("*" if argument.optional else "") + key: types.name(argument.type)
            for key, argument in each.arguments.items()
        } | _IN_SESSION.get(name, {})
        argument_type = f"q_obj_{name}-arg" if arguments else _EMPTY
        if arguments:
            yield _object(argument_type, arguments)
        returns = types.name(get_type_hints(each.run)["return"])
        yield {"name": name, "meta-type": "command", "arg-type": argument_type, "ret-type": returns}


def _events(types: _Types) -> Iterator[dict[str, Any]]:
    for name, each in EVENTS.items():
        data = types.members(each.data)
        argument_type = f"q_obj_{name}-arg" if data else _EMPTY
        if data:
            yield _object(argument_type, data)
        yield {"name": name, "meta-type": "event", "arg-type": argument_type}


def _listed(types: _Types) -> Iterator[dict[str, Any]]:
    """Return the types to which commands and events refer."""
    yield _object(_EMPTY, {})
    for name, json_type in BUILTIN.items():
        yield {"name": name, "meta-type": "builtin", "json-type": json_type}
    for name, values in ENUMS.items():
        named = [{"name": value} for value in values]
        yield {"name": name, "meta-type": "enum", "members": named, "values": list(values)}
    for name, members_of in types.structs.items():
        yield _object(name, members_of)
    for name, inner in types.alternates.items():
        yield {"name": name, "meta-type": "alternate", "members": [{"type": inner}, {"type": "null"}]}
    in_session = {each: each[1:-1] for data in _IN_SESSION.values() for each in data.values()}
    for name, element in sorted((types.arrays | in_session).items()):
        yield {"name": name, "meta-type": "array", "element-type": element}


def _object(name: str, members: Mapping[str, str]) -> dict[str, Any]:
    made: list[dict[str, Any]] = []
    for key, type in members.items():
        member: dict[str, Any] = {"name": key.removeprefix("*"), "type": type}
        if key.startswith("*"):
            member["default"] = None
        made.append(member)
    return {"name": name, "meta-type": "object", "members": made}


@command("query-qmp-schema")
def query_qmp_schema(machine: MonitoredMachine) -> Reply:
    """Return all commands, events and types, in QEMU's form (`qmp-shell` reads it)."""
    return schema()
