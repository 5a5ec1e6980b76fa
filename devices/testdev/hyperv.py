"""QEMU's hyperv-testdev: a port by which a guest routes and raises SINTs, and connects hypercalls to itself.

    port, 32 bits:  connection id 24-31 | operation 16-23 | VP index 8-15 | SINT 0-7

A message connection puts each HvPostMessage on its id into the message slot of its SINT; an event connection sets
the event flag of its number for each HvSignalEvent on its id. Both then raise the SINT.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from pyvmm.errors import HostError
from pyvmm.hyperv.tlfs import SINT_COUNT, HypercallStatus
from pyvmm.loop import Poster
from pyvmm.trace import event

operated = event("testdev.hyperv", "{operation} vp {vp} sint {sint} connection {connection_id:#x}")
refused = event("testdev.hyperv_refused", "{operation} vp {vp} sint {sint} connection {connection_id:#x}: {reason}")


class Operation(IntEnum):
    """Bits 16-23 of a write."""

    ROUTE = 1
    UNROUTE = 2
    RAISE = 3
    CONNECT_MESSAGES = 4
    DISCONNECT_MESSAGES = 5
    CONNECT_EVENTS = 6
    DISCONNECT_EVENTS = 7


class HypervEngine(Protocol):
    """The part of a Hyper-V engine that the device uses; any thread may call it, except `post_message`."""

    vp_count: int
    message_ports: dict[int, Callable[[int, bytes], int]]
    event_ports: dict[int, Callable[[], int]]

    def open_sint(self, vp: int, sint: int) -> None: ...

    def close_sint(self, vp: int, sint: int) -> None: ...

    def interrupt(self, vp: int, sint: int) -> None: ...

    def signal_event(self, vp: int, sint: int, flag: int) -> bool: ...

    def post_message(self, vp: int, sint: int, type: int, payload: bytes, done: Callable[[int], None]) -> None: ...


class HypervTestdev:
    """The device. Writes come on vCPU threads, one at a time (`iomap`)."""

    def __init__(self, engine: HypervEngine, loop: Poster) -> None:
        self.lock = threading.RLock()
        self._engine = engine
        self._loop = loop
        self._forget()

    def _forget(self) -> None:
        self._routes: Counter[tuple[int, int]] = Counter()  # users of each open SINT
        self._messages: dict[int, tuple[int, int]] = {}  # (VP, SINT) by connection
        self._events: dict[int, tuple[int, int]] = {}
        self._staged: set[tuple[int, int]] = set()  # SINTs with a message that is not in its slot yet

    def reset(self) -> None:
        """Return to the power-on state; the engine has dropped its routes, or will."""
        for connection_id in self._messages:
            self._engine.message_ports.pop(connection_id, None)
        for connection_id in self._events:
            self._engine.event_ports.pop(connection_id, None)
        self._forget()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Carry out an operation; one that makes no sense is traced and ignored."""
        if offset or size != 4:
            return
        sint, vp, operation, connection_id = value.to_bytes(4, "little")
        if operated.on:
            operated(operation, vp, sint, connection_id)
        reason = "no such VP or SINT"
        if vp < self._engine.vp_count and sint < SINT_COUNT:
            try:
                reason = self._operate(operation, (vp, sint), connection_id)
            except (HostError, OSError) as error:  # too many routes or descriptors
                reason = str(error)
        if reason and refused.on:
            refused(operation, vp, sint, connection_id, reason)

    def _operate(self, operation: int, sint: tuple[int, int], connection_id: int) -> str:
        """Carry out an operation, and return why not, or an empty text."""
        match operation:
            case Operation.ROUTE:
                self._open(sint)
            case Operation.UNROUTE if self._routes[sint]:
                self._close(sint)
            case Operation.RAISE if self._routes[sint]:
                self._engine.interrupt(*sint)
            case Operation.CONNECT_MESSAGES if connection_id not in self._messages:
                self._open(sint)
                self._messages[connection_id] = sint
                staged = self._staged  # of this power-on: the callbacks of an earlier one must not change it
                self._engine.message_ports[connection_id] = lambda kind, data: self._post(sint, staged, kind, data)
            case Operation.DISCONNECT_MESSAGES if connection_id in self._messages:
                del self._engine.message_ports[connection_id]
                self._close(self._messages.pop(connection_id))
            case Operation.CONNECT_EVENTS if connection_id not in self._events:
                self._open(sint)
                self._events[connection_id] = sint
                self._engine.event_ports[connection_id] = lambda: self._signal(sint, connection_id)
            case Operation.DISCONNECT_EVENTS if connection_id in self._events:
                del self._engine.event_ports[connection_id]
                self._close(self._events.pop(connection_id))
            case _:
                return "no such operation now"
        return ""

    def _open(self, sint: tuple[int, int]) -> None:
        if not self._routes[sint]:
            self._engine.open_sint(*sint)
        self._routes[sint] += 1

    def _close(self, sint: tuple[int, int]) -> None:
        self._routes[sint] -= 1
        if not self._routes[sint]:
            self._engine.close_sint(*sint)

    def _post(self, sint: tuple[int, int], staged: set[tuple[int, int]], type: int, payload: bytes) -> int:
        """Handle HvPostMessage, on a vCPU's thread. As in QEMU there is one message on its way to each SINT."""
        with self.lock:
            if sint in staged:
                return HypercallStatus.INSUFFICIENT_BUFFERS
            staged.add(sint)

        def done(status: int) -> None:
            if status != -errno.EAGAIN:
                staged.discard(sint)

        self._loop.post(self._engine.post_message, *sint, type, payload, done)
        return HypercallStatus.SUCCESS

    def _signal(self, sint: tuple[int, int], flag: int) -> int:
        """Handle HvSignalEvent, on a vCPU's thread."""
        if self._engine.signal_event(*sint, flag):
            return HypercallStatus.SUCCESS
        return HypercallStatus.INVALID_PORT_ID
