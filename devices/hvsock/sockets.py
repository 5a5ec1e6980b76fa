"""All connections of a machine: makes them at the guest's or the host's request, within limits, and ends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from uuid import UUID

from pyvmm.devices.hvsock import events as trace
from pyvmm.devices.hvsock.connection import Connection, HostEnd
from pyvmm.devices.hvsock.protocol import PORT_MAX, guid_port, offer, port_guid
from pyvmm.errors import ConfigError, GuestProtocolError
from pyvmm.loop import Timer
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.protocol import Version

CONNECTIONS_LIMIT = 256
"""Limit of connections, ended ones included that the guest has not released: each takes two rings and a
descriptor."""

PENDING_LIMIT = 32
"""Limit of connections that are being made: a guest may request them faster than the host's programs accept."""

GUEST_OPEN_SECONDS = 5.0
"""Guest time for the guest to open a connection that it requested; Linux's connect() waits 2 s by default."""

HOST_OPEN_SECONDS = 3.0
"""Guest time for the guest to open a connection of the host: one without a listener says nothing."""

FIRST_HOST_PORT = 1 << 30
"""First port of the host's ends of connections that the host makes. Below 2^31, which is the limit of Windows' tools;
far above the ports that Linux gives to its own ends."""

Dial = Callable[[int, Callable[[HostEnd | None], None]], None]
"""dial(port, done) connects to the host's program at a port: calls `done` once, with None if there is none."""

Attach = Callable[[int], HostEnd | None]
"""attach(host_port) returns the host's end when the guest has opened the connection; None if it is gone."""


class Sockets:
    """Connections between a guest and its host. All methods belong to the loop's thread."""

    def __init__(self, bus: Vmbus, dial: Dial) -> None:
        self.dial = dial
        self._bus = bus
        self._connections: dict[Connection, Timer] = {}  # with the time limit for the guest to open it
        self._dialling: dict[UUID, int] = {}  # the guest's end: the bus's count of contacts at the request
        self._unreleased = 0  # ended, not released by the guest
        self._host_ports = count()
        bus.server.on_connect = self._requested

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def _why_full(self) -> str:
        """Why no further connection can be made; empty if one can."""
        if len(self._connections) + self._unreleased + len(self._dialling) >= CONNECTIONS_LIMIT:
            return f"there are {CONNECTIONS_LIMIT} connections"
        if sum(not each.was_opened for each in self._connections) + len(self._dialling) >= PENDING_LIMIT:
            return f"{PENDING_LIMIT} connections are being made"
        return ""

    # The guest connects

    def _requested(self, endpoint: UUID, service: UUID) -> bool:
        try:
            guest_port, host_port = guid_port(endpoint), guid_port(service)
        except GuestProtocolError:
            return False
        if trace.requested.on:
            trace.requested(guest_port, host_port)
        # Linux takes an offer of an instance that it knows for the old channel's.
        taken = endpoint in self._dialling or any(each.offer.instance == endpoint for each in self._connections)
        reason = "that end is in use" if taken else self._why_full
        if reason:
            self._trace_refused(guest_port, host_port, reason)
            return False
        self._dialling[endpoint] = self._bus.contacts
        self.dial(host_port, partial(self._dialled, endpoint, service))
        return True

    def _dialled(self, endpoint: UUID, service: UUID, end: HostEnd | None) -> None:
        contacts = self._dialling.pop(endpoint)
        guest_port, host_port = guid_port(endpoint), guid_port(service)
        if end is None:
            self._trace_refused(guest_port, host_port, "no program listens")
            self._bus.refuse_connect(endpoint, service)
            return
        if self._bus.version is None or self._bus.contacts != contacts:
            end.close(flush=False)  # another kernel runs
            return

        def ended(connection: Connection) -> None:
            self._end(connection)
            if not connection.was_opened:
                end.close(flush=False)

        made = Connection(
            offer(service, endpoint, host_connects=False),
            guest_port=guest_port,
            host_port=host_port,
            attach=lambda: self._opened(made, end),
            ended=ended,
        )
        try:
            self._offer(made, GUEST_OPEN_SECONDS, lambda: made.break_off("the guest did not open it"))
        except ConfigError as error:  # the bus is full
            self._trace_refused(guest_port, host_port, str(error))
            end.close(flush=False)
            self._bus.refuse_connect(endpoint, service)

    # The host connects

    def connect(self, port: int, attach: Attach, failed: Callable[[str], None]) -> None:
        """Connect to a port on which the guest listens: one of `attach` and `failed` is called once."""
        version = self._bus.version
        if not 0 <= port <= PORT_MAX:
            failed(f"{port} is no port")
            return
        if version is None or version < Version.WIN10:
            failed("the guest's kernel has no Hyper-V sockets yet: it has not connected to the VMBus")
            return
        if self._why_full:
            failed(self._why_full)
            return
        host_port = FIRST_HOST_PORT + next(self._host_ports) % FIRST_HOST_PORT
        late = False

        def ended(connection: Connection) -> None:
            self._end(connection)
            if not connection.was_opened:
                failed("no program in the guest listens" if late else "the guest's kernel left the VMBus")

        def expired() -> None:
            nonlocal late
            late = True
            made.break_off("the guest did not open it")

        made = Connection(
            offer(port_guid(port), port_guid(host_port), host_connects=True),
            guest_port=port,
            host_port=host_port,
            attach=lambda: self._opened(made, attach(host_port)),
            ended=ended,
        )
        try:
            self._offer(made, HOST_OPEN_SECONDS, expired)
        except ConfigError as error:
            failed(str(error))

    # Both

    def _offer(self, connection: Connection, seconds: float, expired: Callable[[], None]) -> None:
        self._bus.add(connection)
        self._connections[connection] = self._bus.loop.after(seconds, expired)
        if trace.offered.on:
            trace.offered(connection.guest_port, connection.host_port)

    def _opened(self, connection: Connection, end: HostEnd | None) -> HostEnd | None:
        self._connections[connection].cancel()
        return end

    def _end(self, connection: Connection) -> None:
        self._connections.pop(connection).cancel()
        self._unreleased += 1
        self._bus.remove(connection, self._released)

    def _released(self) -> None:
        self._unreleased -= 1

    def _trace_refused(self, guest_port: int, host_port: int, reason: str) -> None:
        if trace.refused.on:
            trace.refused(guest_port, host_port, reason)
