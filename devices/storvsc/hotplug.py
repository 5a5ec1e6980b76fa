"""The disks of a controller: their numbers, and how they come and go while the guest runs.

    present --remove--> leaving --the guest finds it missing, and flushes--> gone: image closed, `gone()` called

A disk is added by ENUMERATE_BUS: the guest scans and finds it. It is removed by the same packet, and by answering
TEST UNIT READY as for no disk; Linux then sends a last SYNCHRONIZE CACHE, which is served. A guest without a driver
loses the disk at once, one that does nothing after GRACE seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm.devices.storvsc import events as trace
from pyvmm.devices.storvsc.disk import Disk, Presence
from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.devices.storvsc.controller import Controller
    from pyvmm.disks.image import Image

LUNS = 64
"""Most disks of a controller. Linux would take 255."""

GRACE = 25.0
"""Seconds of guest time for which a removed disk still serves commands. Linux scans all targets first, which takes
2 s in a slow guest, and a controller that is rescinded while a disk is in use hangs it."""

AFTER_LAST = 0.2
"""Seconds for which it serves commands after the guest has found it missing and flushed it: Linux's last command."""


@dataclass(slots=True)
class Closing:
    """The end of an image, on a thread: a storage daemon writes back what it holds. Then `gone()`."""

    image: Image
    gone: Callable[[], object]

    def run(self) -> None:
        """Close the image."""
        with suppress(OSError):
            self.image.close()

    def finish(self) -> None:
        """Tell it."""
        self.gone()


class Disks:
    """The disks on `controller`, by LUN."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.all: dict[int, Disk] = {}
        self._gone: dict[Disk, Callable[[], object]] = {}

    def present(self) -> Iterator[Disk]:
        """Return those that the guest finds."""
        return (each for each in self.all.values() if each.presence is Presence.PRESENT)

    def all_gone(self) -> bool:
        """Whether the guest has let go of all disks."""
        return all(each.presence is Presence.GONE for each in self.all.values())

    def luns(self) -> list[int]:
        """Return the numbers for REPORT LUNS."""
        return sorted(each.lun for each in self.present())

    def find(self, path: int, target: int, lun: int) -> Disk | None:
        """Return the disk there, leaving ones too."""
        return None if path or target else self.all.get(lun)

    def free_lun(self) -> int:
        """Return the lowest free number. Raises ConfigError."""
        for lun in range(LUNS):
            if lun not in self.all:
                return lun
        raise ConfigError(f"a controller has {LUNS} disks at most; remove one")

    def add(self, disk: Disk) -> None:
        """Add a disk; a guest that runs finds it."""
        assert disk.lun not in self.all
        self.all[disk.lun] = disk
        if trace.plugged.on:
            trace.plugged(disk.id, disk.lun)
        self._controller.enumerate()

    def remove(self, disk: Disk, gone: Callable[[], object]) -> None:
        """Remove a disk; `gone()` is called once the guest has let go of it and its image is closed."""
        assert disk not in self._gone
        self._gone[disk] = gone
        self.hide(disk)

    def is_leaving(self, disk: Disk) -> bool:
        """Whether the disk is being removed."""
        return disk in self._gone

    def hide(self, disk: Disk) -> None:
        """Take a disk from the guest: for good, or until a driver opens the controller anew."""
        if disk.presence is not Presence.PRESENT:
            self.check_gone(disk)
            return
        disk.presence = Presence.LEAVING
        if trace.leaving.on:
            trace.leaving(disk.id, disk.lun)
        primary = self._controller.primary
        if primary is None or not self._controller.serving:
            self._end(disk)
            return
        primary.after(GRACE, lambda: self._end(disk))
        self._controller.enumerate()

    def found_missing(self, disk: Disk) -> None:
        """The guest has found a leaving disk missing: it will flush once more, when it has let go of it."""
        disk.asked = True

    def flushed_last(self, disk: Disk) -> None:
        """The guest has flushed a disk after it found it missing."""
        primary = self._controller.primary
        if primary is not None:
            primary.after(AFTER_LAST, lambda: self._end(disk))

    def driver_left(self) -> None:
        """The driver has closed the controller: disks being removed are gone, the next driver finds the others."""
        for disk in list(self.all.values()):
            disk.asked = disk.failed = False
            disk.presence = Presence.GONE if disk in self._gone else Presence.PRESENT
            self.check_gone(disk)

    def _end(self, disk: Disk) -> None:
        if disk.presence is Presence.LEAVING:
            disk.presence = Presence.GONE
            self.check_gone(disk)
            self._controller.check_left()

    def check_gone(self, disk: Disk) -> None:
        """Close the image of a disk that was removed, once the guest and the threads have let go of it."""
        if disk.presence is Presence.GONE and not disk.outstanding and disk in self._gone:
            gone = self._gone.pop(disk)
            del self.all[disk.lun]
            if trace.gone.on:
                trace.gone(disk.id, disk.lun)
            self._controller.workers.submit(Closing(disk.image, gone))

    def close(self) -> None:
        """Close all images but those that a thread still uses."""
        for disk in self.all.values():
            if not disk.outstanding:
                disk.image.close()
        self.all.clear()
        self._gone.clear()
