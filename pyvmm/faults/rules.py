"""A rule: which items it selects, in which state, what it does with them, and how often.

    message.out : drop , type=OPEN_RESULT , channel=hv-balloon , after=1 , once , state=start , new=opened
    point         action  what it selects                         skip 1   count   state before and after

States are words, one for all rules of a machine; it is `start` at first. A rule with `state` acts in that state only,
and `new` is entered when it has acted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyvmm.faults import layouts
from pyvmm.faults.points import POINTS, Point
from pyvmm.tap import Item

FIRST_STATE = "start"

Function = Callable[[Item], object]
"""A test's action: returns the bytes or the Item to pass on, a list of them, or None to drop it.

It may run on a vCPU's thread (points hypercall, interrupt, clock, discard, ioctl), so it must be quick and touch no
device."""


@dataclass(slots=True)
class Rule:
    """One rule. `parse` makes it of text; the fields say what is in `pyvmm run --fault help`."""

    point: str
    action: str
    match: dict[str, str] = field(default_factory=dict)
    to: dict[str, int | str] = field(default_factory=dict)
    """New values by name: of a field, or of a number in the bytes."""
    at: int = 0
    bytes: bytes = b""
    length: int | None = None
    seconds: float = 0.0
    others: int = 1
    times: int = 1
    errno: int = 0
    before: bool = False  # insert before the item, not after it
    after: int = 0
    count: int | None = None
    state: str = ""
    new: str = ""
    fault: str = ""
    """The name of the library's fault that it is a part of."""
    function: Function | None = None

    number: int = 0
    """Its fault's number, once it is added to a machine."""
    seen: int = 0
    """Items selected so far, in its state."""
    hits: int = 0
    """Items it has acted on."""
    failures: int = 0
    last_failure: str = ""
    error: Exception | None = None
    """What the test's function raised; it is not called again then."""

    @property
    def acts(self) -> bool:
        """Whether it does more than count and set the state. The first rule that acts is the only one."""
        return self.action != "pass"

    @property
    def spent(self) -> bool:
        return (self.count is not None and self.hits >= self.count) or self.error is not None

    def selects(self, item: Item) -> bool:
        """Whether the item is one of those that the rule is for."""
        kind = POINTS[self.point].kind
        return all(_fits(item, name, wanted, kind) for name, wanted in self.match.items())

    def changed(self, item: Item) -> Item:
        """Return the item with the rule's bytes, values and length. Raises OverflowError if a value does not fit."""
        data = bytearray(item.data)
        if self.bytes:
            data.extend(bytes(max(0, self.at + len(self.bytes) - len(data))))
            data[self.at : self.at + len(self.bytes)] = self.bytes
        fields = dict(item.fields)
        for name, value in self.to.items():
            if name in fields:
                fields[name] = value
                continue
            place = layouts.layout(Item(item.point, bytes(data), fields)).get(name)
            if place is None or len(data) < sum(place):
                raise ValueError(f"there is no {name} in these {len(data)} bytes")
            at, size = place
            data[at : at + size] = int(value).to_bytes(size, "little")
        if self.length is not None and self.action != "truncate":
            return Item(item.point, resized(bytes(data), self.length), fields)
        return Item(item.point, bytes(data), fields)

    def text(self) -> str:
        """Return the rule as `parse` reads it."""
        words: list[str] = [f"{name}={value}" for name, value in self.match.items()]
        words += [f"to.{name}={value}" for name, value in self.to.items()]
        for name, value, usual in (
            ("at", self.at, 0),
            ("bytes", self.bytes.hex(), ""),
            ("length", self.length, None),
            ("seconds", self.seconds, 0.0),
            ("others", self.others, 1),
            ("times", self.times, 1),
            ("errno", errno.errorcode.get(self.errno, ""), ""),
            ("place", "before" if self.before else "", ""),
            ("after", self.after, 0),
            ("count", self.count, None),
            ("state", self.state, ""),
            ("new", self.new, ""),
        ):
            if value != usual:
                words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        return ",".join([f"{self.point}:{self.action}", *words])

    def failure(self) -> OSError:
        """Return the error that the action `fail` raises."""
        return OSError(self.errno, os.strerror(self.errno))


def resized(data: bytes, length: int) -> bytes:
    """Return `data` cut to `length` bytes, or filled up with zeros. A negative length is cut from the end."""
    return data[:length] if length < 0 else data[:length].ljust(length, b"\0")


def _fits(item: Item, name: str, wanted: str, kind: str) -> bool:
    if name == kind and not wanted.isdecimal():
        return layouts.message_name(item) == wanted
    found = item.fields.get(name)
    if found is None:
        found = layouts.value(item, name)
    if isinstance(found, int):
        return str(found) == wanted
    return found == wanted


def canonical(point: Point, name: str, text: str) -> str:
    """Return the selector's value in the form that `selects` compares: numbers in decimal, names as declared."""
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    if name == point.kind:
        return text.upper().replace("-", "_")
    return text


def describe_fields(fields: Mapping[str, int | str]) -> str:
    """Return an item's fields for a trace."""
    return " ".join(f"{name}={value}" for name, value in fields.items())
