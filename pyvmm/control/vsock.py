"""QMP commands `x-vsock` and `x-session`: turn a monitor's connection into one to a port of the guest. Not in QEMU.

    client                                    machine
      | {"execute": "x-vsock", "arguments": {"port": 5000}} ---> |
      | <------------------------------------------ {"return": {}} |   or an error: the connection is the monitor's
      still | bytes <------------------------------------------> bytes |   of the guest's program

No socket is made for it: whoever reaches the monitor reaches the guest, in the emulated host as well.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from pyvmm.control.errors import ControlError, DeviceNotActive
from pyvmm.control.protocol import DeferredReply
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.errors import HostError, PyvmmError
from pyvmm.qapi import Empty


class Giving(Protocol):
    """A client that can give its connection away."""

    def give_away(self, take: Callable[[socket.socket], None]) -> None: ...


@command("x-vsock", of_client=True, port=int)
def vsock(machine: MonitoredMachine, client: Giving | None, port: int) -> DeferredReply[Empty]:
    """Connect this connection to `port` of the guest, after the reply."""
    deferred = DeferredReply[Empty]()
    _connect(machine, client, port, deferred)
    return deferred


@command("x-session", of_client=True, start=Argument(bool, optional=True))
def session(machine: MonitoredMachine, client: Giving | None, start: bool = True) -> DeferredReply[Empty]:
    """Connect this connection to the guest's program for sessions after the reply; it is started first, if need be.
    That loads the guest's hv_sock. Refused without `start` if none was started before.
    """
    deferred = DeferredReply[Empty]()

    def started(result: int | PyvmmError) -> None:
        if isinstance(result, HostError):
            deferred.refuse(DeviceNotActive(str(result)))
        elif isinstance(result, PyvmmError):
            deferred.refuse(ControlError(str(result)))
        else:
            _connect(machine, client, result, deferred)

    machine.guest.start_sessions(started, only_if_started=not start)
    return deferred


def _connect(machine: MonitoredMachine, client: Giving | None, port: int, deferred: DeferredReply[Empty]) -> None:
    if client is None:
        deferred.refuse(ControlError("a QMP connection is needed, which becomes the guest's"))
        return

    def attach() -> socket.socket | None:
        given: list[socket.socket] = []
        client.give_away(given.append)
        deferred.resolve({})  # the reply; the connection is given away right after it
        return given[0] if given else None

    machine.guest.connect(port, attach, lambda reason: deferred.refuse(ControlError(reason)))
