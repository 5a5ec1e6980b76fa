"""Completes the entries of messages and exits: the structures and classes that stand for them in the code."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from typing import Any, get_args

from pyvmm.explain import declared
from pyvmm.explain.entry import Entry, fields_of


def complete_message(entry: Entry) -> None:
    """Add a VMBus message's structure: fields, Linux's name, and the code that handles the class."""
    from pyvmm.vmbus import protocol

    classes: list[type[protocol.Message]] = [*get_args(protocol.GuestMessage), *get_args(protocol.HostMessage)]
    for cls in classes:
        if entry.number != cls.TYPE:
            continue
        doc = declared.read(protocol.__name__).find(cls.__name__)
        text = declared.split(doc.doc if doc else "")
        if text.symbol.startswith("struct "):
            entry.linux = (f"{text.symbol}, {entry.linux[0]}", *entry.linux[1:])
        if not entry.fields:
            entry.fields = fields_of(cls)
            entry.details["structure"] = (
                f"{cls.__name__}, {cls.SIZE} bytes with its header; since VMBus {_since(cls)}"
            )
            if text.text and text.text not in entry.text:
                entry.details["note"] = text.text
        entry.symbols += ((protocol.__name__, cls.__name__),)
        entry.aliases += (cls.__name__, text.symbol.removeprefix("struct "))


def _since(cls: Any) -> str:
    return f"{cls.SINCE >> 16}.{cls.SINCE & 0xFFFF}"


def complete_balloon(entry: Entry) -> None:
    """Add the structure of a Dynamic Memory message, and the classes that stand for it."""
    from pyvmm.decode.payloads import balloon_structures
    from pyvmm.devices.balloon import protocol

    cls = balloon_structures().get(entry.number or 0)
    if cls is None:
        return
    entry.fields = fields_of(cls)
    own = cls.__name__.removesuffix("Head") if cls is not protocol.Header else "HotAddRequest"
    doc = declared.split((declared.read(protocol.__name__).find(own) or declared.Declaration("", 0)).doc)
    entry.details["structure"] = f"{own}, {cls.SIZE} bytes" + (" before its ranges" if own != cls.__name__ else "")
    entry.linux = (f"{doc.symbol}, {entry.linux[0]}", *entry.linux[1:])
    entry.symbols += ((protocol.__name__, own),)
    entry.aliases += (own, doc.symbol.removeprefix("struct "))


def complete_service(entry: Entry) -> None:
    """Add the body of an integration service's message."""
    from pyvmm.decode.payloads import service_bodies

    cls = service_bodies().get(entry.number or 0) if entry.what.startswith("integration") else None
    if cls is not None:
        entry.fields = fields_of(cls)
        entry.details["structure"] = f"{cls.__name__}, {cls.SIZE} bytes after the frame (IcHeader)"
        entry.symbols += ((cls.__module__, cls.__name__),)
        entry.aliases += (cls.__name__,)


def complete_exit(entry: Entry) -> None:
    """Add the classes that an exit reason is decoded to, and the code that handles them."""
    from pyvmm.kvm import exits

    if entry.what != "KVM exit reason":
        return
    decoder = exits._DECODERS.get(entry.number or 0)
    if decoder is None:
        entry.details["note"] = "pyvmm does not decode it: a vCPU that meets it ends the machine"
        return
    for name in decoder.__code__.co_names:
        found = getattr(exits, name, None)
        cls = found if isinstance(found, type) else type(found)
        if cls in get_args(exits.Exit) and cls is not exits.Unknown:
            entry.symbols += ((exits.__name__, cls.__name__),)
            entry.aliases += (cls.__name__,)
            entry.details[cls.__name__] = ", ".join(each.name for each in dataclass_fields(cls) if each.repr)
