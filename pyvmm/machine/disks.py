"""The disks of a machine: images, opened before the process is confined, and the controller that serves them.

config.disks --open_disks--> OpenDisk ... --make_controller--> Controller, a LUN each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.devices.storvsc.controller import Controller
from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.errors import ErrorReports
from pyvmm.disks.open import open_image
from pyvmm.disks.raw import check_size
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm.disks.image import Image
    from pyvmm.machine.device_set import DeviceSet
    from pyvmm.machine.devices import Parts
    from pyvmm.qapi import Emit

SUB_CHANNELS = 15
"""Sub-channels that a guest may have at most, one for each CPU but the first. One loop serves them all, so that more
of them only spread the guest's own work."""


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """An opened image, with the user's options; the id is chosen."""

    spec: DiskSpec
    image: Image
    id: str


def open_disks(specs: Iterable[DiskSpec]) -> tuple[OpenDisk, ...]:
    """Open the images of a machine. Raises ConfigError and HostError; none is open then."""
    specs = list(specs)
    ids = choose_ids([each.id for each in specs])
    opened: list[OpenDisk] = []
    try:
        for spec, id in zip(specs, ids, strict=True):
            opened.append(OpenDisk(spec, open_image(spec), id))
    except BaseException:
        for disk in opened:
            disk.image.close()
        raise
    return tuple(opened)


def choose_ids(given: list[str]) -> list[str]:
    """Return an id for each disk: the given one, or disk0, disk1 ... Raises ConfigError for one given twice."""
    taken = [each for each in given if each]
    for each in taken:
        if taken.count(each) > 1:
            raise ConfigError(f"two disks have the id {each!r}: give each its own")
    free = (name for number in range(len(given) + len(taken)) if (name := f"disk{number}") not in taken)
    return [each or next(free) for each in given]


def make_controller(parts: Parts) -> Controller:
    """Return a controller with the machine's disks on it."""
    channels = min(parts.config.cpus - 1, SUB_CHANNELS)
    reports = ErrorReports(parts.emit, parts.stop_for_error)
    controller = Controller(parts.timers, reports, sub_channels=channels)
    for lun, each in enumerate(parts.disks):
        controller.disks.add(_disk(each.id, each.image, lun, each.spec))
    return controller


def _disk(id: str, image: Image, lun: int, spec: DiskSpec) -> Disk:
    return Disk(id, image, lun, spec.serial or id, werror=spec.werror, rerror=spec.rerror)


class HotDisks:
    """Adds, removes and describes the disks of a machine that runs. All methods belong to the loop's thread."""

    def __init__(self, devices: DeviceSet, emit: Emit) -> None:
        self._devices = devices
        self._emit = emit

    def _controller(self) -> Controller | None:
        return self._devices.find(Controller)

    def find(self, id: str) -> Disk | None:
        """Return the disk with this id or path; None if there is none."""
        controller = self._controller()
        disks = controller.disks.all.values() if controller is not None else ()
        return next((each for each in disks if id in (each.id, path_of(each))), None)

    def add(self, spec: DiskSpec, open: Callable[[DiskSpec], Image]) -> None:
        """Add a disk, whose image `open` returns. Raises ConfigError, HostError, and what `open` raises."""
        if spec.id and (self.find(spec.id) is not None or self._devices.has(spec.id)):
            raise ConfigError(f"Duplicate device ID '{spec.id}'")
        controller = self._controller()
        if controller is None:
            self._devices.add("storvsc", "")
            controller = self._controller()
            assert controller is not None
        lun = controller.disks.free_lun()
        image = open(spec)
        taken = [each.id for each in controller.disks.all.values()]
        id = spec.id or choose_ids([*taken, ""])[-1]
        controller.disks.add(_disk(id, image, lun, spec))

    def remove(self, disk: Disk) -> None:
        """Remove a disk; DEVICE_DELETED is emitted once the guest has let go of it. Raises ConfigError."""
        controller = self._controller()
        assert controller is not None
        if controller.disks.is_leaving(disk):
            raise ConfigError(f"Device {disk.id} is already in the process of unplug")
        deleted: qapi.DeviceDeletedData = {"device": disk.id, "path": path_of(disk)}
        controller.disks.remove(disk, lambda: self._emit(qapi.DEVICE_DELETED(deleted)))

    def resize(self, id: str, size: int) -> None:
        """Change a disk's size; the guest is told. Raises ConfigError, NotFoundError."""
        disk = self.find(id)
        if disk is None:
            raise NotFoundError(f"Cannot find device='{id}' nor node-name='{id}'")
        check_size(size)
        if disk.read_only:
            raise ConfigError(f"Disk '{id}' is read-only")
        try:
            disk.image.resize(size)
        except OSError as error:
            raise ConfigError(f"{disk.image.path}: {error.strerror}") from error
        disk.resized()
        controller = self._controller()
        if controller is not None:
            controller.enumerate()  # a guest that does nothing with the disk is told too

    def info(self) -> list[qapi.BlockInfo]:
        """Return QEMU's BlockInfo of each disk."""
        controller = self._controller()
        disks = controller.disks.all.values() if controller is not None else ()
        return [_block_info(each) for each in disks]

    def statistics(self) -> list[qapi.BlockStats]:
        """Return QEMU's BlockStats of each disk."""
        controller = self._controller()
        disks = controller.disks.all.values() if controller is not None else ()
        return [{"device": each.id, "node-name": each.id, "stats": _block_stats(each)} for each in disks]


def path_of(disk: Disk) -> str:
    """Return a disk's QOM path."""
    return f"/machine/peripheral/{disk.id}"


def _block_info(disk: Disk) -> qapi.BlockInfo:
    image = disk.image
    return {
        "device": disk.id,
        "qdev": path_of(disk),
        "type": "unknown",
        "removable": False,
        "locked": False,
        "io-status": "ok" if not disk.failed else "nospace" if disk.no_space else "failed",
        "inserted": {
            "file": image.path,
            "node-name": disk.id,
            "ro": image.read_only,
            "drv": image.format,
            "encrypted": False,
            "backing_file_depth": 0,
            "detect_zeroes": "off",
            "image": {
                "filename": image.path,
                "format": image.format,
                "virtual-size": image.size,
            },
            "cache": {"writeback": True, "direct": False, "no-flush": False},
            "bps": 0,
            "bps_rd": 0,
            "bps_wr": 0,
            "iops": 0,
            "iops_rd": 0,
            "iops_wr": 0,
            "write_threshold": 0,
        },
        "x-lun": disk.lun,
        "x-serial": disk.serial,
        "x-werror": disk.werror,
        "x-rerror": disk.rerror,
        "x-state": disk.presence.value,
    }


def _block_stats(disk: Disk) -> qapi.BlockDeviceStats:
    stats = disk.stats
    return {
        "rd_bytes": stats.rd_bytes,
        "wr_bytes": stats.wr_bytes,
        "rd_operations": stats.rd_operations,
        "wr_operations": stats.wr_operations,
        "flush_operations": stats.flush_operations,
        "unmap_operations": stats.unmap_operations,
        "x-failed": stats.failed,
    }
