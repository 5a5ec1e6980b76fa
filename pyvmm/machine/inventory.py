"""Lists of a machine's devices and memory for the monitor.

Source: QEMU qapi/machine.json, MemoryDeviceInfo and HvBalloonDeviceInfo; hw/hyperv/hv-balloon.c for their contents.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, cast

from pyvmm import qapi
from pyvmm.errors import HostError
from pyvmm.memory import PAGE_SIZE
from pyvmm.qapi import Emit, HvBalloonDeviceInfo, MemoryDeviceInfo, MemoryFigures, VmbusChannelInfo

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.machine.config import MachineConfig
    from pyvmm.machine.device_set import DeviceSet
    from pyvmm.machine.hotplug import HotAddWindow

BALLOON: Final = "hv-balloon"


def plugged_memory(devices: DeviceSet) -> int:
    """Return the bytes hot-added to the guest, unconfirmed ones included: only a machine reset removes them."""
    balloon = cast("BalloonDevice | None", devices.device(BALLOON))
    if balloon is None:
        return 0
    ledger = balloon.machine.ledger
    return (ledger.added_pages + ledger.unconfirmed_pages) * PAGE_SIZE


def vmbus_devices(channels: list[VmbusChannelInfo], devices: DeviceSet) -> list[VmbusChannelInfo]:
    """Return the bus's `channels` by relid, each with its device's `id` and `path`; device_del accepts either."""
    rows = {each["guid"]: each for each in devices.info()}
    for channel in channels:
        if device := rows.get(channel["guid"]):
            channel["id"], channel["path"] = device["id"], device["path"]
    return sorted(channels, key=lambda each: each["relid"])


def memory_devices(devices: DeviceSet, window: HotAddWindow | None) -> list[MemoryDeviceInfo]:
    """Return the memory devices: the balloon is the only kind."""
    found: list[MemoryDeviceInfo] = []
    for each in devices.info():
        if each["driver"] == BALLOON:
            data: HvBalloonDeviceInfo = {"max-size": 0 if window is None else window.pages * PAGE_SIZE}
            if each["id"]:
                data["id"] = each["id"]
            if window is not None:
                data["memaddr"], data["memdev"] = window.gpa, "/objects/hot-add"
            found.append({"type": BALLOON, "data": data})
    return found


def resident_memory() -> int:
    """Return the resident size of this process in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        raise HostError(f"/proc/self/statm: {error.strerror}") from error


def memory_figures(config: MachineConfig, balloon: BalloonDevice | None) -> MemoryFigures:
    """Return the guest's memory in bytes: boot size, current size, target, and the resident size on the host."""
    return {
        "boot": config.memory,
        "actual": balloon.actual if balloon is not None else config.memory,
        "target": balloon.target if balloon is not None else None,
        "resident": resident_memory(),
    }


class SizeChangeEvents:
    """Emits MEMORY_DEVICE_SIZE_CHANGE when the balloon has hot-added memory, or a reset has removed it."""

    def __init__(self, devices: DeviceSet, emit: Emit) -> None:
        self._devices, self._emit = devices, emit
        self._size = plugged_memory(devices)

    def poll(self) -> None:
        """Emit the event if the size has changed since the last call."""
        size = plugged_memory(self._devices)
        if size != self._size:
            self._size = size
            for each in self._devices.info():
                if each["driver"] == BALLOON:
                    data: qapi.MemorySize = {"size": size, "qom-path": each["path"]}
                    if each["id"]:
                        data["id"] = each["id"]
                    self._emit(qapi.MEMORY_DEVICE_SIZE_CHANGE(data))
