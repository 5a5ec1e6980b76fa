"""Entries for structures, registers, states, addresses and named faults."""

from __future__ import annotations

import ast
from importlib import import_module
from typing import Any

from pyvmm.bits import Bits
from pyvmm.explain import declared
from pyvmm.explain.entry import Entry, FieldRow, fields_of
from pyvmm.explain.references import all_modules
from pyvmm.wire import Wire


def structures() -> list[Entry]:
    """Return the entries of all `@wire` structures and of registers made of bits."""
    made = []
    for module, name in _classes():
        cls = getattr(import_module(module), name)
        doc = declared.read(module).find(name)
        text = declared.split(doc.doc if doc else "")
        origin = declared.origin(module, name)
        register = issubclass(cls, Bits)
        size = "" if register else f"{cls.SIZE} bytes"
        made.append(
            Entry(
                "register" if register else "struct",
                name,
                "register" if register else f"structure of {size}",
                symbol=text.symbol,
                text=text.text or f"{'Named bits' if register else 'Fields'} of {text.symbol or name}.",
                spec=(*text.spec, *origin.spec) if not text.spec else text.spec,
                linux=(f"{text.symbol} in {origin.linux[0]}", *origin.linux[1:])
                if text.symbol and origin.linux
                else origin.linux,
                place=declared.read(module).place(name),
                fields=fields_of(cls),
                symbols=((module, name),),
                aliases=(text.symbol.partition(" ")[2], f"{module.rpartition('.')[2]}.{name}"),
            )
        )
    return made


def _classes() -> list[tuple[str, str]]:
    """Return module and name of each class that derives from Wire or Bits; VMBus messages are a kind of their own."""
    from pyvmm.vmbus.protocol import Message

    found: list[tuple[str, str]] = []
    for module, text in all_modules():
        if "Wire" not in text and "(Bits)" not in text and "Message" not in text:
            continue
        names = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.bases]
        if not names or module in ("pyvmm.wire", "pyvmm.bits") or module.endswith("__main__"):
            continue
        if not any(word in text for word in ("@wire", "@message", "(Bits)")):
            continue
        loaded = import_module(module)
        for name in names:
            cls = getattr(loaded, name, None)
            if isinstance(cls, type) and (
                issubclass(cls, Bits)
                or (issubclass(cls, Wire) and "SIZE" in vars(cls) and not issubclass(cls, Message))
            ):
                found.append((module, name))
    return found


STATES = (
    ("pyvmm.vmbus.states", "ConnectionState", "state of the guest's connection to the VMBus"),
    ("pyvmm.vmbus.states", "ChannelState", "state of a VMBus channel"),
    ("pyvmm.devices.balloon.states", "State", "state of the balloon"),
)
"""Unions of the classes that are states."""


def states() -> list[Entry]:
    """Return the entries of the states of the machine's state machines."""
    from typing import get_args

    made = []
    for module, union, what in STATES:
        for cls in get_args(getattr(import_module(module), union)):
            doc = declared.read(module).find(cls.__name__)
            notes = {name: each.doc for name, each in doc.members.items()} if doc else {}
            held = [name for name in cls.__dataclass_fields__ if not name.startswith("_")]
            made.append(
                Entry(
                    "state",
                    cls.NAME,
                    what,
                    text=declared.split(doc.doc if doc else "").text,
                    place=declared.read(module).place(cls.__name__),
                    fields=tuple(FieldRow("", name, notes.get(name, "")) for name in held if not name.isupper()),
                    symbols=((module, cls.__name__),),
                    aliases=(cls.__name__, getattr(cls, "QEMU_NAME", "")),
                )
            )
    return made


def places() -> list[Entry]:
    """Return the entries of the fixed I/O ports and addresses."""
    from pyvmm import address_map

    source = declared.read(address_map.__name__)
    made = []
    for variable, each in vars(address_map).items():
        if not isinstance(each, address_map.Place):
            continue
        space = next(name for name, held in address_map.MAP.items() if each in held)
        if space not in ("ports", "memory"):
            continue
        last = f" to {each.end - 1:#x}" if each.size > 1 else ""
        made.append(
            Entry(
                "port" if space == "ports" else "address",
                variable,
                "I/O port" if space == "ports" else "guest physical address",
                each.start,
                text=f"{each.what[:1].upper()}{each.what[1:]}. {each.start:#x}{last}.",
                place=source.place(variable),
                symbols=((address_map.__name__, variable),),
                related=("pyvmm doctor --map",),
                details={"size": each.size},
            )
        )
    return made


def faults() -> list[Entry]:
    """Return the entries of the named faults."""
    from pyvmm.faults import library
    from pyvmm.faults.library import LIBRARY

    origin = declared.origin(library.__name__)
    made = []
    for name, each in LIBRARY.items():
        made.append(
            Entry(
                "fault",
                name,
                f"named fault of {each.group}",
                text=f"{_sentence(each.breaks)} Against the rule: {_sentence(each.against)}",
                spec=origin.spec,
                place=_fault_place(name),
                details={"rules": "; ".join(each.rules)},
                related=(f"pyvmm run --fault {name}", "docs/faults.md"),
            )
        )
    return made


def _sentence(text: Any) -> str:
    words = str(text).strip()
    return f"{words[:1].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


def _fault_place(name: str) -> declared.Place | None:
    for module, text in all_modules():
        if module.startswith("pyvmm.faults.library_") and f'"{name}"' in text:
            before = text[: text.index(f'"{name}"')]
            return declared.Place(declared.read(module).path, before.count("\n") + 1)
    return None
