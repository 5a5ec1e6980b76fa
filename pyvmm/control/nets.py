"""QMP commands for network cards.

Source: QEMU qapi/net.json, set_link and query-rx-filter.
"""

from __future__ import annotations

from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.errors import NotFoundError
from pyvmm.qapi import Empty, NetInfo, RxFilterInfo


@command("set_link", name=str, up=bool)
def set_link(machine: MonitoredMachine, name: str, up: bool) -> Empty:
    """Plug in the cable of a network card, or pull it out."""
    machine.nets().set_link(name, up)
    return {}


@command("query-rx-filter", name=Argument(str, optional=True))
def query_rx_filter(machine: MonitoredMachine, name: str = "") -> list[RxFilterInfo]:
    """Return which frames each card lets pass to the guest."""
    found = [each for each in machine.nets().rx_filters() if name in ("", each["name"])]
    if name and not found:
        raise NotFoundError(f"invalid net client name: {name}")
    return found


@command("x-query-nets")
def query_nets(machine: MonitoredMachine) -> list[NetInfo]:
    """Return the network cards, their links and counters."""
    return machine.nets().info()
