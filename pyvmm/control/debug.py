"""QMP command `x-gdb`: turns a monitor's connection into a debugger's. Not in QEMU, whose `gdbserver` opens a port.

    client                              machine
      | {"execute": "x-gdb"} -------------> |
      | <-------------------- {"return": {}} |
      | +$qSupported:...#.. --------------> |      GDB's remote protocol from here on

No socket is made for it: a confined process could not, and whoever reaches the monitor has its rights already.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

from pyvmm.control import hmp
from pyvmm.control.errors import ControlError
from pyvmm.control.table import MonitoredMachine, command
from pyvmm.qapi import Empty


class Giving(Protocol):
    """A client that can give its connection away."""

    def give_away(self, take: Callable[[socket.socket], None]) -> None: ...


@command("x-gdb", of_client=True)
def gdb(machine: MonitoredMachine, client: Giving | None) -> Empty:
    """Stop the machine and speak GDB's remote protocol on this connection, after the reply."""
    if client is None:
        raise ControlError("a debugger needs a QMP connection, which it takes over")
    machine.check_debugger()
    client.give_away(lambda connection: machine.debug(connection, partial(hmp.execute, machine)))
    return {}
