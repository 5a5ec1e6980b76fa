"""Entries for what is declared otherwise than by enumerations: trace events, devices, QMP, exit statuses."""

from __future__ import annotations

import ast
import inspect
import signal
from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import UUID

from pyvmm.explain import declared
from pyvmm.explain.declared import Place
from pyvmm.explain.entry import Entry, FieldRow
from pyvmm.explain.references import Use, all_modules, first_sentence


def trace_events() -> list[Entry]:
    """Return the entries of all trace events."""
    from pyvmm.launch.trace_events import load_events

    homes = _event_homes()
    made = []
    for event in load_events():
        if event.name not in homes:
            continue  # of a program that uses pyvmm
        module, variable = homes[event.name]
        source = declared.read(module)
        doc = declared.split(source.top[variable].doc)
        qemu = "." not in event.name
        made.append(
            Entry(
                "trace",
                event.name,
                "trace event" + (" of QEMU's name and arguments" if qemu else ""),
                text=doc.text or f"Shown as: {event.template or event.name}",
                spec=declared.origin(module).spec if qemu else (),
                place=source.place(variable),
                fields=tuple(FieldRow("", name) for name in event.fields),
                symbols=((module, variable),),
                related=(f"pyvmm run --trace '{event.name}' -- true",),
            )
        )
    return made


@cache
def _event_homes() -> dict[str, tuple[str, str]]:
    """Return the module and variable of each trace event, from calls `variable = event("name", ...)`."""
    homes: dict[str, tuple[str, str]] = {}
    for module, text in all_modules():
        if "event(" not in text:
            continue
        for node in ast.parse(text).body:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=variable)],
                    value=ast.Call(
                        func=ast.Name(id="event") | ast.Attribute(attr="event"),
                        args=[ast.Constant(value=str(name)), *_],
                    ),
                ):
                    homes[name] = module, variable
    return homes


def devices() -> list[Entry]:
    """Return the entries of the devices and of the GUIDs of their classes and instances."""
    from pyvmm.machine.devices import DEVICES
    from pyvmm.vmbus.names import NAMES

    offers = _offers()
    made: list[Entry] = []
    known: set[str] = set()
    for name, kind in DEVICES.items():
        offer, module, cls = offers[name]
        known.add(str(offer.type))
        package = module.rpartition(".")[0] if module.count(".") > 2 else module
        origin = declared.origin(module)
        made.append(
            Entry(
                "device",
                name,
                "VMBus device",
                text=_sentence(kind.about),
                symbol=NAMES.get(str(offer.type), ""),
                spec=origin.spec,
                linux=origin.linux,
                place=declared.read(module).place(cls),
                symbols=((module, cls),),
                details={
                    "driver": kind.driver,
                    "class GUID": str(offer.type),
                    "instance GUID": str(offer.instance),
                    "package": package,
                },
                related=("pyvmm devices", f"docs/devices.md#{name}"),
                aliases=(kind.driver, str(offer.type), str(offer.instance), cls, NAMES.get(str(offer.type), "")),
            )
        )
    for guid, words in NAMES.items():
        if guid not in known:
            made.append(
                Entry(
                    "guid",
                    guid,
                    "class of VMBus devices",
                    symbol=words,
                    text=f"{words}. pyvmm has no such device.",
                    linux=declared.origin("pyvmm.vmbus.names").linux,
                    place=declared.read("pyvmm.vmbus.names").place("NAMES"),
                    aliases=(words,),
                )
            )
    return made


def socket_port(guid: UUID) -> Entry | None:
    """Return the entry of a GUID that stands for a port of Hyper-V sockets."""
    from pyvmm.devices.hvsock import protocol
    from pyvmm.errors import GuestProtocolError

    try:
        port = protocol.guid_port(guid)
    except GuestProtocolError:
        return None
    module = protocol.__name__
    return Entry(
        "guid",
        str(guid),
        "service of Hyper-V sockets",
        text=f"AF_VSOCK port {port}: the GUID's first 32 bits are the port.",
        linux=declared.origin(module).linux,
        place=declared.read(module).place("guid_port"),
        symbols=((module, "guid_port"), (module, "port_guid")),
        related=("pyvmm run --vsock PATH", "docs/devices.md"),
    )


def _offers() -> dict[str, tuple[Any, str, str]]:
    """Return each device's offer with the module and class that declare it, by the device's name."""
    from importlib import import_module

    from pyvmm.machine.devices import DEVICES
    from pyvmm.vmbus.offer import Offer

    found: dict[str, tuple[Any, str, str]] = {}
    for module, text in all_modules():
        if module.startswith("pyvmm.devices.") and "Offer(" in text:
            loaded = import_module(module)
            for name, cls in vars(loaded).items():
                if not isinstance(cls, type) or cls.__module__ != module:
                    continue
                for offer in vars(cls).values():
                    if isinstance(offer, Offer) and offer.name in DEVICES:
                        found[offer.name] = offer, module, name
    return found


def qmp_commands() -> list[Entry]:
    """Return the entries of the monitor's commands."""
    import pyvmm.control.server  # noqa: F401  (it imports the modules that declare commands)
    from pyvmm.control.schema import schema
    from pyvmm.control.table import COMMANDS

    types = {each["name"]: each for each in schema() if each["meta-type"] == "object"}
    replies = {each["name"]: each["ret-type"] for each in schema() if each["meta-type"] == "command"}
    made = []
    for name, command in sorted(COMMANDS.items()):
        ours = name.startswith("x-")
        arguments = tuple(
            FieldRow(_type_word(argument.type), key, "optional" if argument.optional else "")
            for key, argument in command.arguments.items()
        )
        reply = types.get(replies[name], {}).get("members", [])
        doc = inspect.getdoc(command.run) or ""
        made.append(
            Entry(
                "qmp-command",
                name,
                "QMP command" + (" of pyvmm's own" if ours else ", as QEMU's"),
                text=" ".join(doc.split()),
                spec=() if ours else declared.origin(command.run.__module__).spec,
                fields=arguments,
                handled_at=(_function(command.run),),
                place=_function(command.run).place,
                details={"returns": ", ".join(each["name"] for each in reply) or replies[name]},
                related=("docs/control.md",),
            )
        )
    return made


def qmp_events() -> list[Entry]:
    """Return the entries of the monitor's events."""
    from typing import get_type_hints

    from pyvmm import qapi

    variables = {id(value): name for name, value in vars(qapi).items() if isinstance(value, qapi.Event)}
    source = declared.read(qapi.__name__)
    made = []
    for name, event in qapi.EVENTS.items():
        variable = variables[id(event)]
        members = get_type_hints(event.data) if event.data is not qapi.Empty else {}
        made.append(
            Entry(
                "qmp-event",
                name,
                "QMP event" + (" of pyvmm's own" if name.startswith("X_") else ", as QEMU's"),
                text=declared.split(source.top[variable].doc).text,
                spec=() if name.startswith("X_") else declared.origin(qapi.__name__).spec[:1],
                place=source.place(variable),
                fields=tuple(FieldRow("", member) for member in members),
                symbols=((qapi.__name__, variable),),
                related=("pyvmm wait --event " + name, "docs/control.md"),
            )
        )
    return made


def exit_statuses() -> list[Entry]:
    """Return the entries of pyvmm's exit statuses."""
    from pyvmm.launch import exit_status

    source = declared.read(exit_status.__name__)
    named = {getattr(exit_status, name) for name in source.top if name.isupper()}
    by_signal = [
        Entry(
            "exit-status",
            f"128+{number:d}",
            "exit status of pyvmm, as a shell shows a signal",
            128 + number,
            text=f"Ended by {number.name}, or the command in the guest was: 128 and the signal's number, {number:d}.",
            place=Place(source.path, 1),
            decimal=True,
            aliases=(number.name,),
        )
        for number in signal.Signals
        if number < 32 and 128 + number not in named
    ]
    made = [
        Entry(
            "exit-status",
            name,
            "exit status of pyvmm",
            getattr(exit_status, name),
            text=declared.split(each.doc).text,
            place=source.place(name),
            symbols=((exit_status.__name__, name),),
            decimal=True,
        )
        for name, each in source.top.items()
        if name.isupper()
    ]
    return sorted(made + by_signal, key=lambda each: each.number or 0)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _type_word(type: Any) -> str:
    return getattr(type, "__name__", str(type))


def _function(run: Callable[..., Any]) -> Use:
    run = inspect.unwrap(run)
    path = declared.shown_path(declared.source_file(run.__module__))
    return Use(Place(path, run.__code__.co_firstlineno, run.__qualname__), first_sentence(run.__doc__ or ""), 0)
