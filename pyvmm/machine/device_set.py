"""The VMBus devices of one machine, by id: those it starts with, device_del and device_add.

Source: QEMU system/qdev-monitor.c for ids, paths and the words of refusals.

    plugged --remove: RESCIND--> leaving --RELID_RELEASED--> unplugged --add: OFFER--> plugged

A device that was taken off keeps its state, and the next device_add of its kind puts it back: what the balloon holds
can be given back to the driver when it comes again. It is reset with the machine, and told of a new kernel's contact
when it is put back. Of some kinds a machine can have several (`devices.Kind.several`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from pyvmm import qapi
from pyvmm.errors import ConfigError, NotFoundError
from pyvmm.machine.devices import DEVICES, Parts
from pyvmm.qapi import Emit
from pyvmm.vmbus.bus import Vmbus
from pyvmm.vmbus.device import VmbusDevice

D = TypeVar("D", bound=VmbusDevice)

MOST_OF_A_KIND = 64
"""Devices of one kind that a machine may have, on the bus or off it: each is kept for as long as the machine."""


@dataclass(slots=True)
class _Plug:
    driver: str
    device: VmbusDevice
    id: str
    state: Literal["plugged", "leaving", "unplugged"] = "plugged"
    contacts: int = 0  # of the bus when the device was taken away, or the machine reset

    @property
    def path(self) -> str:
        if self.id:
            return f"/machine/peripheral/{self.id}"
        return f"/machine/peripheral-anon/{_numbered(self.driver, self.device.number)}"


class DeviceSet:
    """The devices on `bus`, made as `parts.config` says. A device that is there from the start has its driver's name
    for an id, with a number from the second of a kind on.

    All calls belong to the loop's thread.
    """

    def __init__(self, bus: Vmbus, parts: Parts, emit: Emit) -> None:
        self._bus = bus
        self._parts = parts
        self._emit = emit
        self._plugs: list[_Plug] = []
        for driver in parts.config.devices:
            plug = self._make(driver)
            plug.id = _numbered(driver, plug.device.number)
            bus.add(plug.device)

    def _make(self, driver: str) -> _Plug:
        device = DEVICES[driver].make(self._parts)
        device.number = sum(each.driver == driver for each in self._plugs)
        plug = _Plug(driver, device, "")
        self._plugs.append(plug)
        return plug

    def find(self, kind: type[D]) -> D | None:
        """The first device of that class on the bus; None if there is none, or it is on its way off."""
        for each in self._plugs:
            if isinstance(each.device, kind) and each.state == "plugged":
                return each.device
        return None

    def info(self) -> list[dict[str, str]]:
        """Devices that are on the bus or on their way off it. `guid`: the instance that is offered."""
        return [
            {"driver": each.driver, "id": each.id, "path": each.path, "guid": str(each.device.offer.instance)}
            for each in self._plugs
            if each.state != "unplugged"
        ]

    def device(self, driver: str) -> VmbusDevice | None:
        """The first device of that kind, on the bus or away; None if the machine has none."""
        return next((each.device for each in self._plugs if each.driver == driver), None)

    def reset(self) -> None:
        """The machine is reset: the bus tells devices that are on it, this those that are not."""
        for plug in self._plugs:
            if plug.state != "plugged":
                plug.device.reset()
                plug.contacts = self._bus.contacts

    def remove(self, id: str) -> None:
        """Take away the device with this id or path; DEVICE_DELETED when the guest has let go of it."""
        plug = next((each for each in self._plugs if each.state != "unplugged" and id in (each.id, each.path)), None)
        if plug is None:
            raise NotFoundError(f"Device '{id}' not found")
        if plug.state == "leaving":
            raise ConfigError(f"Device {id} is already in the process of unplug")
        plug.state = "leaving"
        plug.contacts = self._bus.contacts
        self._bus.remove(plug.device, lambda: self._gone(plug))

    def _gone(self, plug: _Plug) -> None:
        plug.state = "unplugged"
        deleted: qapi.Deleted = {"path": plug.path}
        if plug.id:
            deleted["device"] = plug.id
        self._emit(qapi.DEVICE_DELETED(deleted))

    def add(self, driver: str, id: str) -> None:
        """Put a device on the bus under a new id ("" for none): one that was taken off, or another of a kind of which
        there can be several. Raises ConfigError in QEMU's words.
        """
        if driver not in DEVICES:
            raise ConfigError(f"'{driver}' is not a valid device model name")
        if id and any(each.id == id and each.state != "unplugged" for each in self._plugs):
            raise ConfigError(f"Duplicate device ID '{id}'")
        plug = self._free(driver)
        if self._bus.contacts != plug.contacts:
            plug.device.restarted()
        plug.id, plug.state = id, "plugged"
        self._bus.add(plug.device)

    def _free(self, driver: str) -> _Plug:
        """A device of that kind that is not on the bus. Raises ConfigError if there is none and can be none."""
        plugs = [each for each in self._plugs if each.driver == driver]
        for plug in plugs:
            if plug.state == "unplugged":
                return plug
        if DEVICES[driver].several and len(plugs) < MOST_OF_A_KIND:
            return self._make(driver)
        if not plugs:
            raise ConfigError(f"Device '{driver}' can not be hotplugged on this machine")
        if any(plug.state == "leaving" for plug in plugs):
            raise ConfigError(f"Device '{driver}' is still in the process of unplug")
        most = f"{MOST_OF_A_KIND}" if DEVICES[driver].several else "one"
        raise ConfigError(f"No free place for device '{driver}': there is {most} of a kind")


def _numbered(driver: str, number: int) -> str:
    return f"{driver}{number}" if number else driver
