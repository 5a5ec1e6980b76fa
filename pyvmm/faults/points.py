"""The points at which rules act: what crosses each, what selects it, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.faults import layouts

TIMED = ("pass", "drop", "delay", "duplicate", "reorder", "change", "insert")
"""What can be done where something happens at the guest, at any time and any number of times."""
ALL = ("pass", "drop", "delay", "duplicate", "reorder", "truncate", "change", "insert")
"""The same where it has bytes."""
VALUE = ("pass", "change")
"""What can be done with a value that somebody waits for."""


KINDS = {"message": "type", "packet": "message", "hypercall": "call"}
"""What a rule calls the message's name, by tap."""


@dataclass(frozen=True, slots=True)
class Point:
    """A tap in one direction. `fields` select items, `settable` ones can be changed too; fields in the bytes
    (`layouts.names`) can be both.
    """

    name: str
    what: str
    actions: tuple[str, ...]
    fields: tuple[str, ...] = ()
    settable: tuple[str, ...] = ()
    note: str = ""

    @property
    def selectors(self) -> list[str]:
        """Return the names by which a rule selects items."""
        kind = [self.kind] if self.kind else []
        return list(dict.fromkeys([*kind, *self.fields, *self.settable, *layouts.names(self.name)]))

    @property
    def kind(self) -> str:
        """Return the name by which a rule selects a message by its name; "" if items are no messages."""
        return KINDS.get(self.name.split(".")[0], "")

    @property
    def has_bytes(self) -> bool:
        """Whether items have bytes; else they have fields only."""
        return self.name.split(".")[0] in ("message", "packet", "clock", "ioctl")


POINTS = {
    each.name: each
    for each in (
        Point(
            "hypercall.in",
            "a hypercall, before it is done",
            TIMED,
            ("code",),
            ("control", "input1", "input2"),
            "A call that is dropped or comes later succeeds at once. Kernel engine: HvSignalEvent is not seen.",
        ),
        Point("hypercall.out", "the status that the guest gets", VALUE, ("code",), ("status",)),
        Point("message.in", "a VMBus message of the guest, before it is served", ALL, ("channel",), ("connection",)),
        Point(
            "message.out",
            "a VMBus message to the guest, before it is queued for its slot",
            ALL,
            ("channel",),
            ("vp", "synic_type"),
        ),
        Point(
            "packet.in",
            "a packet of the guest (header, descriptor, payload), before the device gets it",
            ALL,
            ("channel", "relid"),
        ),
        Point(
            "packet.out",
            "a packet for the guest (header, descriptor, payload, trailer), before it is stored in the ring",
            ALL,
            ("channel", "relid"),
        ),
        Point(
            "index.in",
            "an index of a ring that the guest has stored, as the host reads it",
            VALUE,
            ("channel", "relid", "ring", "word"),
            ("value",),
            "`ring` is guest (it writes) or host, `word` is write or read.",
        ),
        Point(
            "index.out",
            "an index of a ring that the host stores",
            TIMED,
            ("channel", "relid"),
            ("ring", "word", "value"),
            "`to.word` may also be mask, pending or features; `to.ring` leads to the other ring.",
        ),
        Point(
            "event.in",
            "the guest's signal of a channel",
            ("pass", "drop", "delay", "duplicate", "reorder"),
            ("channel", "relid"),
        ),
        Point(
            "event.out", "a channel's event flag for the guest", TIMED, ("channel", "relid"), ("vp", "sint", "flag")
        ),
        Point("eom.in", "the guest's end of a message (EOM)", TIMED, (), ("vp",)),
        Point("interrupt.out", "the interrupt of a SINT", TIMED, (), ("vp", "sint")),
        Point(
            "clock.out",
            "the reference time (`what` is msr or host), or a reference TSC page (page)",
            ("pass", "drop", "change"),
            ("what",),
            ("time",),
            "Kernel engine: only `host`, which time synchronisation sends; KVM answers the guest itself.",
        ),
        Point(
            "discard.out",
            "RAM that is returned to the host: `by` balloon or reporting",
            (*TIMED, "fail"),
            ("by",),
            ("gpa", "size"),
        ),
        Point(
            "memslot.out",
            "a new memory slot of KVM; deletions do not cross it",
            ("pass", "drop", "duplicate", "change", "fail"),
            ("slot",),
            ("gpa", "size", "readonly"),
        ),
        Point(
            "ioctl.out",
            "an ioctl of KVM other than KVM_RUN: `op` is its name without KVM_",
            ("pass", "drop", "delay", "duplicate", "reorder", "change", "fail"),
            ("op", "handle"),
            (),
            "Bytes can be changed of SIGNAL_MSI, IRQ_LINE and SET_CLOCK. Those and SET_GSI_ROUTING and NMI can be "
            "delayed and repeated; HYPERV_EVENTFD, IRQFD and IOEVENTFD only dropped; all others only fail.",
        ),
    )
}
WORDS = {"ring": ("guest", "host"), "word": ("write", "read", "mask", "pending", "features")}
"""Settable fields whose values are words."""
