"""Latencies between requests and answers: pairs of events, matched in order or by a shared id."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import Trace
from pyvmm.machine.devices import load_devices
from pyvmm.trace.views import VIEWS, Pair

_BUS_PAIRS = (
    Pair(
        "message from the guest: posted to taken", "vmbus_recv_message", "vmbus_process_incoming_message",
        ("type:message_type",),
    ),
    Pair("message to the guest: posted to in its slot", "vmbus_post_msg", "vmbus_msg_cb", when=("status", 0)),
    Pair("contact to version response", "vmbus_initiate_contact", "vmbus.version_response"),
    Pair(
        "offers asked for to all delivered", "vmbus_process_incoming_message", "vmbus_terminate_offers",
        begin_when=("message_type", 3),
    ),
    Pair("GPADL header to created", "vmbus_gpadl_header", "vmbus_gpadl_created", ("gpadl_id",)),
    Pair("open to open result", "vmbus_open_channel", "vmbus_channel_open", ("chan_id",)),
)  # fmt: skip
"""Pairs of the VMBus itself; devices declare theirs beside their events (`pyvmm.trace.views`)."""


@dataclass(slots=True)
class Latency:
    """The latencies of one kind: (begin, duration), in seconds. `replaced` likewise, up to the next begin."""

    title: str
    samples: list[tuple[float, float]] = field(default_factory=list)
    replaced: list[tuple[float, float]] = field(default_factory=list)
    unanswered: int = 0

    @property
    def seconds(self) -> list[float]:
        """Return the durations, sorted."""
        return sorted(took for _, took in self.samples)

    def quantile(self, part: float) -> float:
        """Return the sample that the fraction `part` of all samples does not exceed."""
        ordered = self.seconds
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    @property
    def median(self) -> float:
        return median(self.seconds)


def latencies(trace: Trace) -> list[Latency]:
    """Return the latencies of each kind that the trace has answers of."""
    load_devices()
    pairs = (*_BUS_PAIRS, *(pair for view in VIEWS for pair in view.pairs))
    given_up = [each for view in VIEWS for each in view.given_up]
    begins: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        begins[pair.begin].append(number)
        ends[pair.end].append(number)
    found = [Latency(pair.title) for pair in pairs]
    open_: list[dict[Hashable, deque[float]]] = [defaultdict(deque) for _ in pairs]
    for entry in trace.entries:
        for number in ends.get(entry.name, ()):
            pair = pairs[number]
            waiting = open_[number][_key(pair, entry, 1)]
            if waiting and _holds(pair.when, entry):
                began = waiting.popleft()
                found[number].samples.append((began - trace.start, entry.time - began))
                if pair.single:
                    waiting.clear()
        if any(entry.name == name and fields.items() <= entry.fields.items() for name, fields in given_up):
            for number, pair in enumerate(pairs):
                if pair.single:
                    found[number].unanswered += sum(1 for waiting in open_[number].values() if waiting)
                    open_[number].clear()
        for number in begins.get(entry.name, ()):
            pair = pairs[number]
            if _holds(pair.begin_when, entry):
                waiting = open_[number][_key(pair, entry, 0)]
                if pair.newest and waiting:
                    began = waiting.popleft()
                    found[number].replaced.append((began - trace.start, entry.time - began))
                waiting.append(entry.time)
    for number, latency in enumerate(found):
        waits = [len(waiting) for waiting in open_[number].values()]
        latency.unanswered += sum(min(each, 1) for each in waits) if pairs[number].single else sum(waits)
    return [latency for latency in found if latency.samples]


def _key(pair: Pair, entry: Entry, side: int) -> Hashable:
    names = [name.split(":")[side if ":" in name else 0] for name in pair.key]
    return tuple(str(entry.fields.get(name)) for name in names)


def _holds(condition: tuple[str, int] | None, entry: Entry) -> bool:
    return condition is None or entry.number(condition[0], -1) == condition[1]
