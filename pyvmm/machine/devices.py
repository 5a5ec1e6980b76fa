"""The devices a machine can have on its VMBus, one row each. docs/adding-a-device.md shows how a new one is added.

A row's key is the device's name for the user, the monitor (device_add) and traces, and the name of its offer.
The module of a device is imported when a machine gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING

from pyvmm.machine import events as trace
from pyvmm.machine.reporting import tap_discard

if TYPE_CHECKING:
    from pyvmm.devices.balloon.hot_add import Window
    from pyvmm.guest_time import GuestTimers
    from pyvmm.hyperv.engine import Engine
    from pyvmm.machine.config import MachineConfig
    from pyvmm.machine.disks import OpenDisk
    from pyvmm.machine.links import Links
    from pyvmm.memory import GuestMemory
    from pyvmm.qapi import Emit
    from pyvmm.vmbus.device import VmbusDevice


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a machine that the constructors of its devices use."""

    config: MachineConfig
    timers: GuestTimers
    memory: GuestMemory
    engine: Engine
    window: Window | None = None  # for hot-added memory
    disks: tuple[OpenDisk, ...] = ()
    links: Links | None = None
    cards: Iterator[int] = field(default_factory=count)  # numbers of network cards
    emit: Emit = lambda occurrence: None
    notice: Callable[[str], object] = lambda text: None
    stop_for_error: Callable[[], object] = lambda: None
    """Pauses the machine after an error of a disk's image, until the user lets it go on."""

    def discard(self, gpa: int, size: int) -> None:
        """Discard ballooned memory, i.e. return it to the host."""
        tap = self.engine.taps.discard
        discard = self.memory.discard
        done = tap_discard(tap, "balloon", gpa, size, discard) if tap.on else discard(gpa, size)
        if trace.memory_discarded.on:
            trace.memory_discarded(done, gpa)


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: `make` builds a device, the module `events` declares its trace events and their sequence
    diagrams. A machine may have several only if their drivers support more than one; Linux's balloon and integration
    services do not.
    """

    make: Callable[[Parts], VmbusDevice]
    events: str
    about: str = ""  # for `--device help`
    driver: str = ""  # Linux's module for it
    several: bool = False
    hot: bool = False  # may come to a machine that began without


def _balloon(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.devices.balloon.ledger import PAGE_SHIFT
    from pyvmm.devices.balloon.protocol import WIN7, WIN8, WIN10
    from pyvmm.devices.balloon.tuning import Tuning

    config = parts.config
    return BalloonDevice(
        [(region.gpa, region.size) for region in parts.memory],
        parts.discard,
        clock=parts.timers.clock,
        # Automatic sizing starts at the boot size after each power-on or reset.
        keep_target=config.keep_target and config.limits is None,
        tuning=Tuning(
            balloon_piece=config.balloon_piece >> PAGE_SHIFT,
            hot_add_piece=config.balloon_piece >> PAGE_SHIFT,
            newest_version={"1.0": WIN7, "2.0": WIN8, "3.0": WIN10}[config.balloon_version],
            wants_status=config.status_report,
        ),
        window=parts.window,
        granule=config.mem_backend.page_size,
    )


def _heartbeat(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.ic.heartbeat import Heartbeat

    return Heartbeat()


def _shutdown(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.ic.shutdown import Shutdown

    return Shutdown()


def _timesync(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.ic.timesync import TimeSync

    return TimeSync(reference_time=parts.engine.reference_time)


def _storvsc(parts: Parts) -> VmbusDevice:
    from pyvmm.machine.disks import make_controller

    return make_controller(parts)


def _kvp(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.kvp import Kvp

    return Kvp({"VirtualMachineName": parts.config.name})


def _vss(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.vss import Vss

    return Vss()


def _fcopy(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.fcopy import FileCopy

    return FileCopy()


def _keyboard(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.keyboard import Keyboard

    return Keyboard()


def _echo(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.echo import Echo

    return Echo()


def _echo_monitored(parts: Parts) -> VmbusDevice:
    from pyvmm.devices.echo import Echo

    return Echo(monitored=True)


def _netvsc(parts: Parts) -> VmbusDevice:
    from pyvmm.machine.links import make_card

    return make_card(parts)


DEVICES: dict[str, Kind] = {
    "hv-balloon": Kind(_balloon, "pyvmm.devices.balloon.events", "the guest's memory, down and up", "hv_balloon"),
    "heartbeat": Kind(_heartbeat, "pyvmm.devices.ic.events", "whether the guest is alive", "hv_utils"),
    "shutdown": Kind(_shutdown, "pyvmm.devices.ic.events", "asks the guest to power off", "hv_utils"),
    "timesync": Kind(_timesync, "pyvmm.devices.ic.events", "the guest's clock", "hv_utils"),
    "storvsc": Kind(
        _storvsc, "pyvmm.devices.storvsc.events", "a SCSI controller with the disks of --disk", "hv_storvsc", hot=True
    ),
    "kvp": Kind(_kvp, "pyvmm.devices.kvp.events", "values to and from the guest; its name and addresses", "hv_utils"),
    "vss": Kind(
        _vss, "pyvmm.devices.vss.events", "freezes the guest's file systems for copies of its disks", "hv_utils"
    ),
    "fcopy": Kind(_fcopy, "pyvmm.devices.fcopy.device", "writes files into the guest, as its root", "hv_utils"),
    "keyboard": Kind(
        _keyboard, "pyvmm.devices.keyboard.device", "keys, by send-key in the monitor", "hyperv_keyboard"
    ),
    "netvsc": Kind(
        _netvsc, "pyvmm.devices.netvsc.events", "a network card; --net connects it", "hv_netvsc", several=True
    ),
    "echo": Kind(
        _echo, "pyvmm.devices.echo.events", "sends packets back; for uio_hv_generic", "uio_hv_generic", several=True
    ),
    "echo-monitored": Kind(
        _echo_monitored,
        "pyvmm.devices.echo.events",
        "the same for Linux before 6.10: by monitor page",
        "uio_hv_generic",
        several=True,
    ),
}


def describe() -> str:
    """Return a line for each device, for `--device help`."""
    return "\n".join(f"{name:<16} {kind.about}" for name, kind in DEVICES.items())


def load_devices() -> None:
    """Import the modules that declare trace events of VMBus and PC devices, for readers of traces."""
    for module in sorted({kind.events for kind in DEVICES.values()}):
        import_module(module)
    import_module("pyvmm.devices.hvsock.events")
    import_module("pyvmm.devices.netvsc.events")
    import_module("pyvmm.machine.board")
    import_module("pyvmm.machine.test_devices")
