"""The fault rules of one machine: attaches them to its taps, decides for each item, and carries out their actions.

    item --> rules of its point, in the order added --> the first that acts and fires --> its action --> deliver
             `pass` rules before it count and set the state

An item may cross on a vCPU's thread, so decisions are made under a lock; actions run outside of it. A delayed item is
delivered on the loop's thread, in guest time, one that was held back by the item that it waited for; neither is once
the machine was reset.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pyvmm.contain import contain
from pyvmm.errors import ConfigError, GuestError, HostError, NotFoundError
from pyvmm.faults import events as trace
from pyvmm.faults.parse import RULES_LIMIT, keyword_rules, parse_rules
from pyvmm.faults.rules import FIRST_STATE, Function, Rule, describe_fields, resized
from pyvmm.qapi import FaultInfo
from pyvmm.tap import Deliver, Item, Taps

if TYPE_CHECKING:
    from pyvmm.machine import Machine

PENDING_LIMIT = 1024
"""Items that wait for their delivery, delayed or held back. More pass unchanged: a guest can cause any number."""
FAILING = frozenset(("memslot.out", "discard.out", "ioctl.out"))
"""Points whose layer expects a HostError, and handles it as a refusal of the host."""
TRACED_BYTES = 64


class FaultError(Exception):
    """A function that a test gave as an action has raised, or returned what is no bytes; its cause is chained."""


class FaultNeverHit(UserWarning):
    """A `with` block has ended in which nothing that its fault is for has happened: it has tested nothing."""


class Fault:
    """What one `add` made: a rule, or those of a named fault. As a context manager it is removed at the end, which
    raises FaultError if a function of the test failed, and warns if no rule of it was hit.
    """

    def __init__(self, owner: FaultSet, number: int, text: str, rules: list[Rule]) -> None:
        self._owner = owner
        self.number = number
        self.text = text
        """The fault as it was given."""
        self.rules = rules

    @property
    def hits(self) -> int:
        """Return how many items its rules have acted on so far."""
        return sum(rule.hits for rule in self.rules)

    def remove(self) -> None:
        """Remove its rules; harmless twice. What they hold back or delay is still delivered."""
        self._owner.remove(self)

    def check(self) -> None:
        """Raise FaultError if a function of the test has failed."""
        for rule in self.rules:
            if rule.error is not None:
                raise FaultError(f"the function at {rule.point} failed: {rule.error!r}") from rule.error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
        if kind is None:
            self.check()
            if not self.hits:
                why = self._owner.why(self.rules[0])
                warnings.warn(f"the fault {self.text} was never hit: {why}", FaultNeverHit, stacklevel=2)

    def __repr__(self) -> str:
        return f"<fault #{self.number} {self.text}, {self.hits} hits>"


@dataclass(slots=True)
class _Held:
    """An item that waits until so many more of its point have crossed."""

    rule: Rule
    item: Item
    deliver: Deliver
    left: int


class FaultSet:
    """The rules of the machine with these taps. `add` and `remove` may be called from any thread."""

    def __init__(self, taps: Taps) -> None:
        self.taps = taps
        self.state = FIRST_STATE
        self.faults: list[Fault] = []
        """Those in force, in the order added."""
        self.crossed: Counter[str] = Counter()
        """Items that have crossed by point, since a rule for its tap is there."""
        self._past: list[Fault] = []  # removed without a hit, or with failures
        self._held: list[_Held] = []
        self._pending = 0
        self._life = 0  # counts resets
        self._numbers = 0
        self._lock = threading.RLock()
        self._attached: set[str] = set()
        taps.resets.append(self._reset)

    @classmethod
    def of(cls, machine: Machine) -> FaultSet:
        """Return the machine's rule set, made at the first call."""
        found = machine.taps.rules
        if not isinstance(found, FaultSet):
            found = machine.taps.rules = FaultSet(machine.taps)
        return found

    # Rules

    def add(self, rule: str, action: str | Function | None = None, **keys: object) -> Fault:
        """Add a rule as text, a named fault, or a point with an action and keys. Raises ConfigError.

        add("message.out:drop,type=OPEN_RESULT,once")    add("torndown-withheld", after=1)
        add("packet.out", "change", channel="hv-balloon", to={"type": 77}, once=True)
        add("packet.out", lambda item: item.data[:-8], message="BALLOON_REQUEST")     see rules.Function
        """
        if action is None:
            text = ",".join([rule, *(f"{name}={_shown(value)}" for name, value in keys.items())])
            rules = parse_rules(text)
        else:
            rules = keyword_rules(rule, action, keys)
            text = rules[0].text()
        return self._install(text, rules)

    def _install(self, text: str, rules: list[Rule]) -> Fault:
        with self._lock:
            if sum(len(each.rules) for each in self.faults) + len(rules) > RULES_LIMIT:
                raise ConfigError(f"there are {RULES_LIMIT} fault rules already: remove some")
            self._numbers += 1
            fault = Fault(self, self._numbers, text, rules)
            for rule in rules:
                rule.number = fault.number
            self.faults.append(fault)
            self._attach()
        if trace.added.on:
            trace.added(fault.number, text)
        return fault

    def remove(self, fault: Fault | int) -> None:
        """Remove a fault; harmless twice. Raises NotFoundError for a number that is none."""
        with self._lock:
            if isinstance(fault, int):
                found = next((each for each in self.faults if each.number == fault), None)
                if found is None:
                    raise NotFoundError(f"no fault has the number {fault}: x-query-faults lists them")
                fault = found
            if fault not in self.faults:
                return
            self.faults.remove(fault)
            self._past.append(fault)
            self._attach()
        if trace.removed.on:
            trace.removed(fault.number, fault.hits)

    def clear(self) -> None:
        """Remove all faults, and return to the first state."""
        for fault in list(self.faults):
            self.remove(fault)
        self.state = FIRST_STATE

    def add_text(self, rule: str) -> int:
        """Add a rule for the monitor; return its number. Raises ConfigError."""
        return self.add(rule).number

    def info(self) -> list[FaultInfo]:
        """Return the faults in force, for the monitor."""
        return [
            {
                "id": each.number,
                "rule": each.text,
                "hits": each.hits,
                "seen": sum(rule.seen for rule in each.rules),
                "failures": sum(rule.failures for rule in each.rules),
            }
            for each in self.faults
        ]

    def hits(self, text: str) -> int:
        """Return the hits of all faults given by this text, or of this name, removed ones too."""
        every = (*self._past, *self.faults)
        return sum(each.hits for each in every if text in (each.text, each.rules[0].fault))

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self.faults))

    def _rules(self) -> Iterator[Rule]:
        for fault in self.faults:
            yield from fault.rules

    def _attach(self) -> None:
        """Attach to the taps that rules are for or whose items are held back, and to no other."""
        wanted = {rule.point.split(".")[0] for rule in self._rules()}
        wanted |= {each.item.point.split(".")[0] for each in self._held}
        for name in wanted - self._attached:
            self.taps[name].attach(self._handle)
        for name in self._attached - wanted:
            self.taps[name].detach(self._handle)
        self._attached = wanted

    # Items

    def _handle(self, item: Item, deliver: Deliver) -> Any:
        with self._lock:
            self.crossed[item.point] += 1
            due = self._count_down(item.point)
            chosen = self._choose(item)
        try:
            if chosen is None:
                return deliver(item)
            return self._act(chosen, item, deliver)
        finally:
            for held in due:
                self._deliver_late(held.rule, held.item, held.deliver, self._life)

    def _choose(self, item: Item) -> Rule | None:
        """Count the item for the rules that select it, set the state, and return the rule that acts."""
        state, chosen = self.state, None
        for rule in self._rules():
            if rule.point != item.point or rule.spent or rule.state not in ("", state):
                continue
            if (chosen is not None and rule.acts) or not rule.selects(item):
                continue
            rule.seen += 1
            if rule.seen <= rule.after:
                continue
            rule.hits += 1
            if trace.hit.on:
                data = item.data[:TRACED_BYTES].hex() + ("..." if len(item.data) > TRACED_BYTES else "")
                trace.hit(rule.number, item.point, rule.action, describe_fields(item.fields), data)
            if rule.new:
                self._enter(rule.new)
            if rule.acts:
                chosen = rule
        return chosen

    def _enter(self, state: str) -> None:
        if trace.state_changed.on:
            trace.state_changed(self.state, state)
        self.state = state

    def _act(self, rule: Rule, item: Item, deliver: Deliver) -> Any:
        """Carry out a rule's action; return what the layer gets."""
        match rule.action:
            case "drop":
                return None
            case "fail":
                raise rule.failure()
            case "delay" | "reorder" if not self._take_place(rule):
                return deliver(item)
            case "delay":
                self._delay(rule, item, deliver)
                return None
            case "reorder":
                with self._lock:
                    self._held.append(_Held(rule, item, deliver, rule.others))
                return None
            case "truncate":
                return self._deliver_each(rule, [item.but(_cut(item.data, rule.length or 0))], deliver)
            case "duplicate":
                return self._deliver_each(rule, [item] * (1 + rule.times), deliver)
        try:
            if rule.action == "call":
                items = _normal(item, rule.function(item) if rule.function is not None else item)
            else:
                changed = rule.changed(item)
                items = [changed] if rule.action == "change" else [changed, item] if rule.before else [item, changed]
        except Exception as error:  # a test's function, or a rule whose values are not those of this item
            if rule.action == "call":
                rule.error = error
            self._failed(rule, repr(error) if rule.action == "call" else str(error))
            return deliver(item)
        return self._deliver_each(rule, items, deliver)

    def _deliver_each(self, rule: Rule, items: list[Item], deliver: Deliver) -> Any:
        """Deliver items at once; return what the layer gave for the last one that it took."""
        result = None
        for each in items:
            try:
                result = deliver(each)
            except GuestError:
                raise
            except HostError as error:
                if rule.point in FAILING:
                    raise
                self._failed(rule, str(error))
            except Exception as error:
                self._failed(rule, repr(error))
                contain(f"fault rule at {rule.point}", error)
        return result

    # Later

    def _take_place(self, rule: Rule) -> bool:
        with self._lock:
            if self._pending < PENDING_LIMIT:
                self._pending += 1
                return True
        self._failed(rule, f"{PENDING_LIMIT} items wait already")
        return False

    def _delay(self, rule: Rule, item: Item, deliver: Deliver) -> None:
        life = self._life
        later = _Later(self, rule, item, deliver, life)
        self.taps.post(lambda: self.taps.after(rule.seconds, later))

    def _count_down(self, point: str) -> list[_Held]:
        """Count an item for those of its point that are held back; return those whose turn it is after it."""
        due = []
        for held in self._held:
            if held.item.point == point:
                held.left -= 1
                if held.left <= 0:
                    due.append(held)
        if due:
            self._held = [each for each in self._held if each not in due]
            self._attach()
        return due

    def _deliver_late(self, rule: Rule, item: Item, deliver: Deliver, life: int) -> None:
        with self._lock:
            if life != self._life:
                return  # for a guest that is gone
            self._pending -= 1
        if trace.delivered_late.on:
            trace.delivered_late(rule.number, item.point)
        try:
            deliver(item)
        except (GuestError, HostError) as error:
            self._failed(rule, str(error))
        except Exception as error:
            self._failed(rule, repr(error))
            contain(f"fault rule at {rule.point}", error)

    def _reset(self) -> None:
        """Drop what is held back or delayed, at a machine reset. The rules stay, with their counts and the state."""
        with self._lock:
            self._life += 1
            self._held, self._pending = [], 0
            self._attach()

    # What happened

    def _failed(self, rule: Rule, reason: str) -> None:
        rule.failures += 1
        rule.last_failure = reason
        if trace.failed.on:
            trace.failed(rule.number, rule.point, reason)

    def report(self) -> list[str]:
        """Return a line for each rule that never acted, had no effect, or still holds items back."""
        lines = []
        for fault in (*self._past, *self.faults):
            for rule in fault.rules:
                name = f"fault rule {rule.text()}" + (f" of {rule.fault}" if rule.fault else "")
                if not rule.hits:
                    lines.append(f"{name} was never hit: {self.why(rule)}")
                if rule.failures:
                    times = "once" if rule.failures == 1 else f"{rule.failures} times"
                    lines.append(f"{name} had no effect {times}: {rule.last_failure}")
        for held in self._held:
            lines.append(f"fault rule {held.rule.text()} still holds an item back: no {held.left} more have crossed")
        return lines

    def why(self, rule: Rule) -> str:
        """Return why a rule was not hit."""
        crossed = self.crossed[rule.point]
        if rule.seen:
            return f"it selected {rule.seen} items, after={rule.after} skips them"
        if not crossed:
            return f"nothing crossed {rule.point}"
        if rule.state and rule.state != self.state:
            return f"the state is {self.state}, not {rule.state}"
        return f"it selected none of the {crossed} items that crossed {rule.point}"


@dataclass(slots=True)
class _Later:
    """A timer's callback: delivers an item late."""

    owner: FaultSet
    rule: Rule
    item: Item
    deliver: Deliver
    life: int

    def __call__(self) -> None:
        self.owner._deliver_late(self.rule, self.item, self.deliver, self.life)


def _cut(data: bytes, length: int) -> bytes:
    return resized(data, length) if length < 0 else data[:length]


def _normal(item: Item, made: object) -> list[Item]:
    """Return what a test's function made of an item as a list of items. Raises TypeError."""
    items: list[Item] = []
    for each in made if isinstance(made, (list, tuple)) else [made]:
        if isinstance(each, Item):
            if each.point != item.point:
                raise TypeError(f"an item of {each.point} from a function at {item.point}")
            items.append(each)
        elif isinstance(each, bytes | bytearray | memoryview):
            items.append(item.but(bytes(each)))
        elif each is not None:
            raise TypeError(f"a function at {item.point} returned {type(each).__name__}: bytes, Item, a list or None")
    return items


def _shown(value: object) -> str:
    return "on" if value is True else "off" if value is False else str(value)
