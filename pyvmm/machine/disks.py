"""The disks of a machine: images, opened before the process is confined, and the controller that serves them.

config.disks --open_disks--> OpenDisk ... --make_controller--> Controller, a LUN each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.devices.storvsc.controller import Controller
from pyvmm.devices.storvsc.disk import Disk
from pyvmm.devices.storvsc.errors import ErrorReports
from pyvmm.disks.open import open_image
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.disks.image import Image
    from pyvmm.machine.devices import Parts

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
        controller.disks.add(Disk(each.id, each.image, lun, each.spec.serial or each.id, werror=each.spec.werror))
    return controller
