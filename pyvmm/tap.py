"""Taps: one seam for each layer, at which what passes between host and guest can be watched, changed or lost.

    layer:   if taps.packet.on:                                # the only cost while nothing is attached
                 taps.packet.cross("out", data, fields, deliver)
             else: deliver at once

    cross --> handler --> handler --> deliver                  each handler may call the next one with the item, with
                                                               another one, several times, later, or never

Directions are the guest's: "in" comes from the guest, "out" goes to it (or, for discards, memory slots and ioctls, to
the host). Each machine has its own Taps, which its Hyper-V engine makes. `pyvmm.faults` attaches rules to them.

| tap | in | out | where |
|---|---|---|---|
| hypercall | a call | its status | hyperv.hypercall, on vCPU threads |
| message | a VMBus message, as it is served | one, as it is queued for its slot | vmbus.mailbox |
| packet | a ring's packet, before the device | one, before it is stored | vmbus.channel |
| index | an index that the guest stored | one that the host stores | vmbus.ring |
| event | the guest's signal of a channel | a channel's event flag | vmbus.channel, vmbus.bus |
| eom | the guest's end of a message | - | hyperv.engine |
| interrupt | - | a SINT that is raised | hyperv.synic, on vCPU threads too |
| clock | - | a read of the reference time, a TSC page | hyperv, on vCPU threads too |
| discard | - | RAM that is returned to the host | machine, on vCPU threads too |
| memslot | - | a memory slot given to KVM | kvm.vm |
| ioctl | - | an ioctl other than KVM_RUN | kvm.handle, on vCPU threads too |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["in", "out"]
Value = int | str
Fields = Mapping[str, Value]


@dataclass(slots=True)
class Item:
    """What crosses a tap: its bytes, where the layer has any, and its fields by name."""

    point: str
    """The tap's name and the direction: `packet.out`."""
    data: bytes
    fields: Fields

    def but(self, data: bytes | None = None, **fields: Value) -> Item:
        """Return a copy with other bytes or fields."""
        return Item(self.point, self.data if data is None else data, {**self.fields, **fields})


Deliver = Callable[[Item], Any]
"""Hands an item on. A layer's own checks what it is given, and may be called any number of times, and later."""
Handler = Callable[[Item, Deliver], Any]
"""Handles an item, and returns what the layer gets: usually what `deliver` returned, None for a lost item."""


class Tap:
    """One layer's seam. `on` is whether a handler is attached."""

    __slots__ = ("_handlers", "name", "on")

    def __init__(self, name: str) -> None:
        self.name = name
        self.on = False
        self._handlers: tuple[Handler, ...] = ()

    def attach(self, handler: Handler) -> None:
        """Let `handler` see every item from now on, after those that are attached. From any thread."""
        self._handlers = (*self._handlers, handler)
        self.on = True

    def detach(self, handler: Handler) -> None:
        """Undo `attach`; harmless if it is not attached."""
        self._handlers = tuple(each for each in self._handlers if each != handler)
        self.on = bool(self._handlers)

    def cross(self, direction: Direction, data: bytes, fields: Fields, deliver: Deliver) -> Any:
        """Pass an item through the handlers to `deliver`. Return what the first handler returned."""
        for handler in reversed(self._handlers):
            deliver = _joined(handler, deliver)
        return deliver(Item(f"{self.name}.{direction}", data, fields))


def _joined(handler: Handler, deliver: Deliver) -> Deliver:
    return lambda item: handler(item, deliver)


def _no_loop(*unused: object) -> None:
    raise AssertionError("no machine has given these taps its loop")


class Taps:
    """The taps of one machine, one for each layer.

    `after(seconds, callback)` and `post(callback)` are those of its guest time: the first for the loop's thread only,
    the second for any. `resets` are called at a machine reset, for handlers that hold items. `rules` is the rule set
    that uses these taps, once there is one (`pyvmm.faults`).
    """

    NAMES = (
        "hypercall",
        "message",
        "packet",
        "index",
        "event",
        "eom",
        "interrupt",
        "clock",
        "discard",
        "memslot",
        "ioctl",
    )

    def __init__(self) -> None:
        self.hypercall, self.message, self.packet, self.index, self.event = map(Tap, self.NAMES[:5])
        self.eom, self.interrupt, self.clock, self.discard, self.memslot, self.ioctl = map(Tap, self.NAMES[5:])
        self.after: Callable[[float, Callable[[], object]], object] = _no_loop
        self.post: Callable[[Callable[[], object]], object] = _no_loop
        self.resets: list[Callable[[], object]] = []
        self.rules: object | None = None

    def __getitem__(self, name: str) -> Tap:
        """Return the tap with this name. Raises KeyError."""
        if name not in self.NAMES:
            raise KeyError(name)
        tap: Tap = getattr(self, name)
        return tap

    def reset(self) -> None:
        """Tell the handlers of a machine reset: what they hold belongs to a guest that is gone."""
        for callback in self.resets:
            callback()
