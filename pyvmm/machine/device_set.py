"""The VMBus devices of one machine, by id: the initial ones, device_del and device_add.

Source: QEMU system/qdev-monitor.c for ids, paths and the words of refusals.

    plugged --remove: RESCIND--> leaving --RELID_RELEASED--> unplugged --add: OFFER--> plugged

A removed device keeps its state, and the next device_add of its kind restores it: the balloon can then give back to a
new driver the pages that are out. It is reset with the machine; if a new kernel made contact in the meantime, its
`bus_connected` is called when it is added again. A machine can have several of some kinds (`devices.Kind.several`).
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

MAX_OF_A_KIND = 64
"""Limit of devices of one kind, on the bus or off it: each exists until the machine ends."""


@dataclass(slots=True)
class _Plug:
    driver: str
    device: VmbusDevice
    id: str
    state: Literal["plugged", "leaving", "unplugged"] = "plugged"
    contacts: int = 0  # the bus's count when the device was removed, or the machine reset

    @property
    def path(self) -> str:
        if self.id:
            return f"/machine/peripheral/{self.id}"
        return f"/machine/peripheral-anon/{_numbered(self.driver, self.device.number)}"


class DeviceSet:
    """The devices on `bus`, made from `parts.config`. An initial device's id is its driver's name, with a number from
    the second of a kind on.

    All methods belong to the loop's thread.
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
        """Return the first device of that class on the bus; None if there is none, or it is being removed."""
        for each in self._plugs:
            if isinstance(each.device, kind) and each.state == "plugged":
                return each.device
        return None

    def info(self) -> list[dict[str, str]]:
        """Return the devices on the bus, including those being removed. `guid`: the offered instance."""
        return [
            {"driver": each.driver, "id": each.id, "path": each.path, "guid": str(each.device.offer.instance)}
            for each in self._plugs
            if each.state != "unplugged"
        ]

    @property
    def kinds(self) -> set[str]:
        """Return the names of the kinds of which there is a device, on the bus or removed."""
        return {each.driver for each in self._plugs}

    def of_kind(self, kind: type[D]) -> list[tuple[str, D]]:
        """Return the devices of that class that are on the bus or being removed, each with its id or path."""
        on_bus = [each for each in self._plugs if each.state != "unplugged"]
        return [(each.id or each.path, each.device) for each in on_bus if isinstance(each.device, kind)]

    def device(self, driver: str) -> VmbusDevice | None:
        """Return the first device of that kind, on the bus or removed; None if the machine has none."""
        return next((each.device for each in self._plugs if each.driver == driver), None)

    def reset(self) -> None:
        """Reset the removed devices at a machine reset; the bus resets those that are on it."""
        for plug in self._plugs:
            if plug.state != "plugged":
                plug.device.reset()
                plug.contacts = self._bus.contacts

    def has(self, id: str) -> bool:
        """Whether a device on the bus has this id."""
        return any(each.id == id and each.state != "unplugged" for each in self._plugs)

    def resumed(self) -> None:
        """Notify all devices that the machine goes on after a pause."""
        for plug in self._plugs:
            plug.device.resumed()

    def quiesce(self) -> None:
        """Have all devices end their threads."""
        for plug in self._plugs:
            plug.device.quiesce()

    def close(self) -> None:
        """Free what devices have open, at the machine's end: the bus was reset."""
        for plug in self._plugs:
            plug.device.close()

    def remove(self, id: str) -> None:
        """Remove the device with this id or path; DEVICE_DELETED is emitted when the guest has released it."""
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
        deleted: qapi.DeviceDeletedData = {"path": plug.path}
        if plug.id:
            deleted["device"] = plug.id
        self._emit(qapi.DEVICE_DELETED(deleted))

    def add(self, driver: str, id: str) -> None:
        """Add a device to the bus under a new id ("" for none): a removed one, or a further one of a kind that allows
        several. Raises ConfigError with QEMU's messages.
        """
        if driver not in DEVICES:
            raise ConfigError(f"'{driver}' is not a valid device model name")
        if id and self.has(id):
            raise ConfigError(f"Duplicate device ID '{id}'")
        plug = self._free(driver)
        if self._bus.contacts != plug.contacts:
            plug.device.bus_connected()
        plug.id, plug.state = id, "plugged"
        self._bus.add(plug.device)

    def _free(self, driver: str) -> _Plug:
        """Return a device of that kind that is not on the bus. Raises ConfigError if there can be no further one."""
        plugs = [each for each in self._plugs if each.driver == driver]
        for plug in plugs:
            if plug.state == "unplugged":
                return plug
        kind = DEVICES[driver]
        if (kind.several and len(plugs) < MAX_OF_A_KIND) or (kind.hot and not plugs):
            return self._make(driver)
        if not plugs:
            raise ConfigError(f"Device '{driver}' can not be hotplugged on this machine")
        if any(plug.state == "leaving" for plug in plugs):
            raise ConfigError(f"Device '{driver}' is still in the process of unplug")
        most = f"{MAX_OF_A_KIND}" if DEVICES[driver].several else "one"
        raise ConfigError(f"No free place for device '{driver}': there is {most} of a kind")


def _numbered(driver: str, number: int) -> str:
    return f"{driver}{number}" if number else driver
