"""All that can be explained, by kind. A kind's entries are made when it is first searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from pyvmm.explain import enumerations, machine_parts, messages
from pyvmm.explain.entry import Entry


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of things that can be explained."""

    name: str
    about: str
    examples: tuple[str, ...]
    load: Callable[[], list[Entry]] | None = None
    """What makes its entries, if no enumeration does."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("msr", "Hyper-V's MSRs; NUMBER=VALUE decodes a value", ("0x40000083", "SINT2", "0x40000092=0x100f3")),
        Kind("cpuid", "CPUID leaves of the hypervisor", ("0x40000003",)),
        Kind("hypercall", "hypercalls by code", ("0x5c", "HvCallSignalEvent")),
        Kind("message", "VMBus messages by type", ("15", "OPEN_RESULT", "CHANNELMSG_GPADL_HEADER")),
        Kind("synic", "types of SynIC messages", ("0x80000010",)),
        Kind("version", "versions of the VMBus", ("0x50003",)),
        Kind("status", "statuses of hypercalls, VMBus, NTSTATUS", ("0xc000000d", "HV_STATUS_INVALID_ALIGNMENT")),
        Kind("exit", "reasons for which KVM_RUN returns", ("KVM_EXIT_MMIO", "27")),
        Kind("trace", "trace events", ("vmbus_open_channel",), machine_parts.trace_events),
        Kind(
            "device",
            "VMBus devices and their GUIDs",
            ("hv-balloon", "525074dc-8985-46e2-8057-a307dc18a502"),
            machine_parts.devices,
        ),
        Kind(
            "guid",
            "other classes of devices, ports of Hyper-V sockets",
            ("00000400-facb-11e6-bd58-64006a7986d3",),
            list,
        ),
        Kind("qmp-command", "commands of the monitor", ("query-balloon",), machine_parts.qmp_commands),
        Kind("qmp-event", "events of the monitor", ("BALLOON_CHANGE",), machine_parts.qmp_events),
        Kind("exit-status", "what pyvmm returns to its shell", ("124",), machine_parts.exit_statuses),
    )
}


@cache
def entries(kind: str) -> tuple[Entry, ...]:
    """Return all entries of a kind."""
    if kind == "guid":
        return tuple(each for each in machine_parts.devices() if each.kind == "guid")
    load = KINDS[kind].load
    if load is not None:
        return tuple(each for each in load() if each.kind == kind)
    made = [
        each
        for enumeration in enumerations.ENUMERATIONS
        if enumeration.kind == kind
        for each in enumerations.entries(enumeration)
    ]
    complete = {"message": messages.complete_message, "exit": messages.complete_exit}.get(kind)
    if complete is not None:
        for each in made:
            complete(each)
    return tuple(made)


def every_entry(kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Entry]:
    """Yield the entries of these kinds, or of all."""
    for kind in kinds:
        yield from entries(kind)
