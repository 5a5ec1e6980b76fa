"""Tells at a machine's end which Hyper-V drivers its guest did not use, and why: for a kernel of the user's own.

The reason is known before the boot (`MachineConfig.absent_drivers`: an option that is not set, a module that was not
built), or the guest's init has printed it (insmod's error).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pyvmm.guest_text import one_line

if TYPE_CHECKING:
    from pyvmm.machine import Machine

INIT_STARTED = "pyvmm: init"
"""The first line of our images' /init."""

_USERS = {
    "hv_balloon": (("hv-balloon",), "the guest never used its balloon"),
    "hv_utils": (("heartbeat", "shutdown", "timesync"), "the guest never used heartbeat, shutdown and timesync"),
}
"""Devices by the driver that opens them, as named in MachineConfig.devices, and what is said if it opened none."""


def driver_report(machine: Machine) -> list[str]:
    """Return a line for each driver that the guest has not used, for the user. Empty if the initramfs is not ours."""
    if machine.config.absent_drivers is None:
        return []
    bus = machine.services.bus
    return report_lines(
        machine.config.absent_drivers,
        machine.console_tail.text(),
        devices=machine.config.devices,
        contacts=bus.contacts,
        opened=bus.opened,
    )


def report_lines(
    absent: Mapping[str, str], console: str, *, devices: Collection[str], contacts: int, opened: Collection[str]
) -> list[str]:
    """Return the lines of `driver_report`. `opened` are the names of the devices whose channels were opened."""
    if not contacts:
        return [f"the guest never contacted VMBus: {_reason('hv_vmbus', absent, console)}"]
    lines = []
    for module, (users, what) in _USERS.items():
        there = [name for name in users if name in devices]
        if there and not any(name in opened for name in there):
            lines.append(f"{what}: {_reason(module, absent, console)}")
    return lines


def _reason(module: str, absent: Mapping[str, str], console: str) -> str:
    if module in absent:
        return f"{module} was not loaded because {absent[module]}"
    failed = re.search(rf"insmod: can't insert '/lib/modules/{module}\.ko': ([^\r\n]*)", console)
    if failed is not None:
        return f"the kernel refused {module}.ko ({one_line(failed[1])}); its log in the guest (`dmesg`) says why"
    if INIT_STARTED not in console:
        return "the kernel did not get to /init; --append 'ignore_loglevel' shows more"
    return f"{module} did not find its device; its log in the guest (`dmesg`) may say why"
