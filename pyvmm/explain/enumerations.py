"""Entries for the members of enumerations: MSRs, hypercalls, messages, statuses, exit reasons and many more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any

from pyvmm.explain import declared
from pyvmm.explain.entry import Entry, FieldRow, Symbol, fields_of


@dataclass(frozen=True, slots=True)
class Enumeration:
    """An enumeration whose members can be explained: its kind, its class, and what a member is, in words."""

    kind: str
    module: str
    name: str
    what: str
    decimal: bool = False

    @property
    def cls(self) -> type[Enum]:
        found: type[Enum] = getattr(import_module(self.module), self.name)
        return found


ENUMERATIONS = (
    Enumeration("msr", "pyvmm.hyperv.tlfs", "Msr", "Hyper-V MSR"),
    Enumeration("cpuid", "pyvmm.hyperv.tlfs", "Leaf", "Hyper-V CPUID leaf"),
    Enumeration("cpuid", "pyvmm.machine.cpu", "Leaf", "CPUID leaf of the CPU"),
    Enumeration("hypercall", "pyvmm.hyperv.tlfs", "HypercallCode", "hypercall"),
    Enumeration("message", "pyvmm.vmbus.protocol", "MessageType", "VMBus message", decimal=True),
    Enumeration("synic", "pyvmm.hyperv.tlfs", "MessageType", "type of SynIC messages"),
    Enumeration("status", "pyvmm.hyperv.tlfs", "HypercallStatus", "hypercall status"),
    Enumeration("status", "pyvmm.vmbus.protocol", "Status", "VMBus status (NTSTATUS)"),
    Enumeration("version", "pyvmm.vmbus.protocol", "Version", "VMBus version"),
    Enumeration("status", "pyvmm.devices.storvsc.protocol", "Status", "SCSI controller's status (NTSTATUS)"),
    Enumeration("status", "pyvmm.devices.storvsc.protocol", "SrbStatus", "status of a SCSI request block"),
    Enumeration("status", "pyvmm.devices.netvsc.nvsp", "Status", "NVSP status", decimal=True),
    Enumeration("status", "pyvmm.devices.netvsc.rndis", "Status", "RNDIS status"),
    Enumeration("packet", "pyvmm.vmbus.packet", "PacketType", "type of packets in a ring", decimal=True),
    Enumeration("balloon", "pyvmm.devices.balloon.protocol", "MessageType", "Dynamic Memory message", decimal=True),
    Enumeration("service", "pyvmm.devices.ic.protocol", "IcType", "integration service's message", decimal=True),
    Enumeration("service", "pyvmm.devices.kvp.protocol", "Operation", "KVP operation", decimal=True),
    Enumeration("service", "pyvmm.devices.kvp.protocol", "Pool", "KVP pool", decimal=True),
    Enumeration("service", "pyvmm.devices.kvp.protocol", "ValueType", "type of KVP values", decimal=True),
    Enumeration("service", "pyvmm.devices.vss.protocol", "Operation", "VSS operation", decimal=True),
    Enumeration("service", "pyvmm.devices.fcopy.protocol", "Operation", "file copy operation", decimal=True),
    Enumeration("network", "pyvmm.devices.netvsc.nvsp", "Type", "NVSP message of the network card", decimal=True),
    Enumeration("network", "pyvmm.devices.netvsc.rndis", "Type", "RNDIS message of the network card", decimal=True),
    Enumeration("network", "pyvmm.devices.netvsc.rndis", "Info", "RNDIS per-packet information", decimal=True),
    Enumeration("network", "pyvmm.devices.netvsc.card", "Oid", "object of the network card (OID)"),
    Enumeration(
        "scsi", "pyvmm.devices.storvsc.protocol", "Operation", "operation of the SCSI controller", decimal=True
    ),
    Enumeration("scsi", "pyvmm.devices.storvsc.protocol", "Direction", "direction of a SCSI transfer", decimal=True),
    Enumeration("echo", "pyvmm.devices.echo.protocol", "Command", "command of the echo device", decimal=True),
    Enumeration("ioctl", "pyvmm.kvm.abi", "Op", "KVM ioctl"),
    Enumeration("capability", "pyvmm.kvm.caps", "Cap", "KVM capability", decimal=True),
    Enumeration("kvm", "pyvmm.kvm.abi", "MpState", "what a vCPU waits for", decimal=True),
    Enumeration("kvm", "pyvmm.kvm.abi", "RouteType", "type of KVM interrupt routes", decimal=True),
    Enumeration("kvm", "pyvmm.kvm.abi", "IrqchipId", "KVM interrupt controller", decimal=True),
    Enumeration("fuse", "pyvmm.share.protocol", "Op", "FUSE request of a shared folder", decimal=True),
    Enumeration("e820", "pyvmm.firmware.e820", "E820Type", "type of e820 memory ranges", decimal=True),
    Enumeration("exit", "pyvmm.kvm.abi", "ExitReason", "KVM exit reason", decimal=True),
    Enumeration("exit", "pyvmm.kvm.abi", "HypervExit", "kind of KVM_EXIT_HYPERV", decimal=True),
    Enumeration("exit", "pyvmm.kvm.abi", "SystemEventType", "kind of KVM_EXIT_SYSTEM_EVENT", decimal=True),
)


NAMELESS = "Linux has no name"
"""Words in the explanation of a member whose number Linux writes as such."""


def entries(enumeration: Enumeration) -> list[Entry]:
    """Return the entries of an enumeration's members."""
    cls = enumeration.cls
    doc = declared.read(enumeration.module).find(enumeration.name)
    prefix = declared.class_prefix(doc.doc) if doc else ""
    origin = declared.origin(enumeration.module, enumeration.name)
    return [_entry(enumeration, member, prefix, origin) for member in cls.__members__.values()]


def _entry(enumeration: Enumeration, member: Enum, prefix: str, origin: declared.Origin) -> Entry:
    text = declared.split(declared.member_doc(enumeration.module, enumeration.name, member.name))
    symbol = text.symbol or (prefix + member.name if prefix and NAMELESS not in text.text else "")
    home = (enumeration.module, enumeration.name)
    written = (f"{member.value >> 16}.{member.value & 0xFFFF}",) if enumeration.kind == "version" else ()
    return Entry(
        enumeration.kind,
        member.name,
        enumeration.what,
        member.value if isinstance(member.value, int) else None,
        symbol,
        text.text or f"{enumeration.what}: {member.name.lower().replace('_', ' ')}.",
        _spec(origin, text),
        (f"{symbol} in {origin.linux[0]}", *origin.linux[1:]) if symbol and origin.linux else origin.linux,
        declared.read(enumeration.module).place(enumeration.name, member.name),
        _named_fields(enumeration.module, text.text),
        _symbols(home, member.name),
        aliases=(*written, *re.findall(r'"(Hv\w+)"', " ".join(text.spec))),
        decimal=enumeration.decimal,
    )


def _spec(origin: declared.Origin, text: declared.Text) -> tuple[str, ...]:
    """Return the sections that a member names, in place of those of its class from the same specification."""
    if not text.spec:
        return origin.spec
    told = {each.split(",")[0].split(" ")[0] for each in text.spec}
    return (*text.spec, *(each for each in origin.spec if each.split(",")[0].split(" ")[0] not in told))


def _named_fields(module: str, text: str) -> tuple[FieldRow, ...]:
    """Return the fields of the classes that a text names in backticks."""
    rows: list[FieldRow] = []
    names = re.findall(r"`(\w+)`", text)
    for name in names:
        cls = getattr(import_module(module), name, None)
        if isinstance(cls, type):
            rows += (
                [FieldRow(each.place, f"{name}.{each.name}", each.meaning) for each in fields_of(cls)]
                if len(names) > 1
                else fields_of(cls)
            )
    return tuple(rows)


def _symbols(home: Symbol, name: str) -> tuple[Symbol, ...]:
    """Return the member, and for a numbered one its siblings: code often names the first and the last of a range."""
    stem = re.sub(r"\d+", "0", name)
    cls: Any = getattr(import_module(home[0]), home[1])
    same = [each for each in cls.__members__ if re.sub(r"\d+", "0", each) == stem and each != name]
    return ((*home, name), *((*home, each) for each in same if re.search(r"\d", name)))
