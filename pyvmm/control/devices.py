"""QMP commands for the machine's hardware: processors, memory, devices, serial lines.

Source: QEMU qapi/{machine,qdev,char}.json; system/qdev-monitor.c, hw/core/machine-qmp-cmds.c for replies and errors.
"""

from __future__ import annotations

from typing import Any

from pyvmm.control.errors import ControlError
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.qapi import ChardevInfo, CpuInfoFast, Empty, KvmInfo, MemoryDeviceInfo, MemoryInfo, TargetInfo

DISK_DRIVER = "scsi-hd"
"""QEMU's name of a SCSI disk."""

_NO_DEVICES = frozenset(
    {"", "/", "/machine", "/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"}
)
"""QOM paths of containers of devices."""


@command("query-cpus-fast")
def query_cpus_fast(machine: MonitoredMachine) -> list[CpuInfoFast]:
    """Return the vCPUs with the threads that run them."""
    return [
        {
            "cpu-index": index,
            "qom-path": f"/machine/unattached/device[{index}]",
            "thread-id": thread,
            "props": {"socket-id": 0, "core-id": index, "thread-id": 0},
            "target": "x86_64",
        }
        for index, thread in enumerate(machine.info_cpus())
    ]


@command("query-memory-size-summary")
def query_memory_size_summary(machine: MonitoredMachine) -> MemoryInfo:
    """Return the bytes of boot RAM and of hot-added memory."""
    base, plugged = machine.info_memory_size()
    return {"base-memory": base, "plugged-memory": plugged}


@command("query-memory-devices")
def query_memory_devices(machine: MonitoredMachine) -> list[MemoryDeviceInfo]:
    """Return the hot-added memory, and the device that adds it."""
    return machine.info_memory_devices()


@command("query-chardev")
def query_chardev(machine: MonitoredMachine) -> list[ChardevInfo]:
    """Return the backends of the serial ports. A monitor's socket is no character device here."""
    return [{"label": label, "filename": place, "frontend-open": True} for label, place in machine.info_consoles()]


@command("query-kvm")
def query_kvm(machine: MonitoredMachine) -> KvmInfo:
    """Return that KVM runs the guest."""
    return {"enabled": True, "present": True}


@command("query-target")
def query_target(machine: MonitoredMachine) -> TargetInfo:
    """Return the guest's architecture."""
    return {"arch": "x86_64"}


@command(
    "device_add",
    open=True,
    of_client=True,
    driver=str,
    bus=Argument(str, optional=True),
    id=Argument(str, optional=True),
)
def device_add(
    machine: MonitoredMachine,
    client: object,
    driver: str,
    more: dict[str, Any],
    bus: str = "vmbus",
    id: str = "",
) -> Empty:
    """Offer a device on the VMBus (again), or add a disk: driver scsi-hd."""
    if driver == DISK_DRIVER:
        from pyvmm.control.disks import add_disk

        add_disk(machine, client, more, id)
        return {}
    if bus != "vmbus":
        raise ControlError(f"Bus '{bus}' not found")
    for name in more:
        raise ControlError(f"Property '{driver}.{name}' not found")
    machine.add_device(driver, id)
    return {}


@command("device_del", id=str)
def device_del(machine: MonitoredMachine, id: str) -> Empty:
    """Rescind a VMBus device. DEVICE_DELETED follows when the guest has released it."""
    if id in _NO_DEVICES:
        raise ControlError(f"{id} is not a device")
    machine.remove_device(id)
    return {}
