"""The KVP device: sets the host's values in the guest, and reads the guest's.

    no driver --opened, versions agreed (the daemon runs)--> asking: one request out, others wait
    asking --nothing more to ask--> resting --REFRESH seconds, or a new value--> asking

A request may stay unanswered for ever, if the daemon ends; then nothing is asked until the channel opens anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar
from uuid import UUID

from pyvmm.devices.ic.device import IcDevice
from pyvmm.devices.ic.link import IcLink
from pyvmm.devices.ic.protocol import IcType
from pyvmm.devices.kvp import events as trace
from pyvmm.devices.kvp.protocol import (
    Operation,
    Pool,
    build_delete,
    build_enumerate,
    build_set,
    check_pair,
    parse_pair,
)
from pyvmm.errors import ConfigError
from pyvmm.loop import Timer
from pyvmm.vmbus.channel import Channel
from pyvmm.vmbus.offer import Offer

ENTRIES_LIMIT = 128
"""Entries that are read of each pool of the guest, 1.3 KB of text each."""
EXTERNAL_LIMIT = 64
"""Values that the host sets in the guest."""
REQUESTS_LIMIT = 16
"""Requests about addresses that wait. Linux's daemon runs a script to set some, for 30 s at most."""

Done = Callable[[bytes | None, int], object]
"""Gets the answer's body and its status; None if the driver or its daemon is gone."""


@dataclass(slots=True)
class Job:
    """One thing to ask: SET and DELETE of `key`, or ENUMERATE from `index` on."""

    operation: Operation
    pool: Pool
    key: str = ""
    value: str = ""
    index: int = 0
    found: dict[str, str] = field(default_factory=dict)
    request: bytes = b""  # GET_IP_INFO and SET_IP_INFO: the whole body
    done: Done | None = None

    def body(self) -> bytes:
        match self.operation:
            case Operation.GET_IP_INFO | Operation.SET_IP_INFO:
                return self.request
            case Operation.SET:
                return build_set(self.pool, self.key, self.value)
            case Operation.DELETE:
                return build_delete(self.pool, self.key)
            case _:
                return build_enumerate(self.pool, self.index)


class Kvp(IcDevice):
    """The device. `facts` are told to each guest that has the daemon, in the pool of facts about the host."""

    OFFER: ClassVar[Offer] = Offer(
        "kvp",
        type=UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
        instance=UUID("242ff919-07db-4180-9c2e-b86cb68c8c55"),
        packet_limit=16384,  # of Linux's buffer; addresses take 7,500
        signal_each=True,
    )
    KIND = IcType.KVP_EXCHANGE
    VERSIONS = ((4, 0), (3, 0), (1, 0))
    REFRESH: ClassVar[float] = 10.0
    """Seconds between two readings of the guest's values."""

    def __init__(self, facts: Mapping[str, str] | None = None) -> None:
        self.facts = dict(facts or {})
        self.external: dict[str, str] = {}  # what the host set, for this guest and the next
        self.refused: dict[str, int] = {}  # statuses of values that the guest did not take, by key
        self.auto: dict[str, str] = {}
        self.guest: dict[str, str] = {}
        self._jobs: deque[Job] = deque()
        self._current: Job | None = None
        self._timer: Timer | None = None

    # The host's side

    def set(self, key: str, value: str) -> None:
        """Set a value in the guest: now, or when its daemon runs. Raises ConfigError."""
        check_pair(key, value)
        if key not in self.external and len(self.external) >= EXTERNAL_LIMIT:
            raise ConfigError(f"{EXTERNAL_LIMIT} values are set already: delete one first")
        self.external[key] = value
        self.refused.pop(key, None)
        self._ask_soon(Job(Operation.SET, Pool.EXTERNAL, key, value))

    def delete(self, key: str) -> None:
        """Delete a value that the host has set. Raises ConfigError if there is none."""
        if key not in self.external:
            raise ConfigError(f"no value {key[:40]!r} was set")
        del self.external[key]
        self.refused.pop(key, None)
        self._ask_soon(Job(Operation.DELETE, Pool.EXTERNAL, key))

    def request(self, operation: Operation, body: bytes, done: Done) -> None:
        """Send a request about addresses, and call `done` once. Raises ConfigError if the daemon does not run."""
        if not self.ready:
            raise ConfigError("the guest's hv_kvp_daemon does not answer (yet)")
        if sum(each.done is not None for each in self._jobs) >= REQUESTS_LIMIT:
            raise ConfigError(f"{REQUESTS_LIMIT} requests about addresses wait already")
        place = max((at for at, each in enumerate(self._jobs, 1) if each.done is not None), default=0)
        self._jobs.insert(place, Job(operation, Pool.EXTERNAL, request=body, done=done))
        self._ask()

    def _ask_soon(self, job: Job) -> None:
        if self.ready:
            same = (job.pool, job.key)
            self._jobs = deque(each for each in self._jobs if each.done is not None or (each.pool, each.key) != same)
            self._jobs.appendleft(job)
            self._ask()

    # The guest's side

    def closed(self, channel: Channel) -> None:
        super().closed(channel)
        lost = [job for job in (self._current, *self._jobs) if job is not None and job.done is not None]
        self._current = self._timer = None
        self._jobs.clear()
        self.auto, self.guest, self.refused = {}, {}, {}
        for job in lost:
            assert job.done is not None
            job.done(None, 0)

    def agreed(self, link: IcLink) -> None:
        self._jobs.extend(Job(Operation.SET, Pool.AUTO_EXTERNAL, *pair) for pair in self.facts.items())
        self._jobs.extend(Job(Operation.SET, Pool.EXTERNAL, *pair) for pair in self.external.items())
        self._refresh()

    def answered(self, link: IcLink, body: bytes, status: int) -> None:
        job, self._current = self._current, None
        assert job is not None
        try:
            self._take(job, body, status)
        finally:
            self._ask()

    def _refresh(self) -> None:
        self._timer = None
        self._jobs.append(Job(Operation.ENUMERATE, Pool.AUTO))
        self._jobs.append(Job(Operation.ENUMERATE, Pool.GUEST))
        self._ask()

    def _ask(self) -> None:
        """Send the next request, or rest if there is none."""
        assert self._link is not None
        if self._current is not None:
            return
        if not self._jobs:
            if self._timer is None:
                self._timer = self._link.channel.after(self.REFRESH, self._refresh)
            return
        job = self._jobs[0]
        if not self._link.request(IcType.KVP_EXCHANGE, job.body()):
            if self._timer is None:  # the ring is full, which one request at a time makes impossible for Linux
                self._timer = self._link.channel.after(self.REFRESH, self._refresh)
            return
        self._current = self._jobs.popleft()
        if trace.asked.on:
            trace.asked(job.operation.name, int(job.pool), job.key or job.index)

    def _take(self, job: Job, body: bytes, status: int) -> None:
        if trace.answered.on:
            trace.answered(job.operation.name, int(job.pool), job.key or job.index, status)
        if job.done is not None:
            job.done(body, status)
            return
        if job.operation is not Operation.ENUMERATE:
            if status and job.pool is Pool.EXTERNAL and job.key in self.external:
                self.refused[job.key] = status
            return
        if status or job.index >= ENTRIES_LIMIT:
            if trace.read.on:
                trace.read(int(job.pool), len(job.found))
            if job.pool is Pool.AUTO:
                self.auto = job.found
            else:
                self.guest = job.found
            return
        job.index += 1
        self._jobs.appendleft(job)
        key, value = parse_pair(body)
        job.found[key] = value
