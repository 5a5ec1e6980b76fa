"""Taking devices off the VMBus of a running machine and putting them back: device_del and device_add.

Source: QEMU system/qdev-monitor.c for ids, paths and the words of refusals.

    plugged --remove: RESCIND--> leaving --RELID_RELEASED--> unplugged --add: OFFER--> plugged

There is one device of each kind, and it keeps its books while it is away: what the balloon holds can be given back to
the driver when it comes again. It is reset with the machine, and told of a new kernel's contact when it is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyvmm.errors import ConfigError, NotFoundError
from pyvmm.machine.services import Services
from pyvmm.vmbus.device import VmbusDevice

Emit = Callable[[str, dict[str, Any]], None]

DRIVERS = {"hv-balloon": "balloon", "heartbeat": "heartbeat", "shutdown": "shutdown", "timesync": "timesync"}
"""Names for device_add, which are those of the offers, and the attribute of Services each is at."""


@dataclass(slots=True)
class _Plug:
    driver: str
    device: VmbusDevice
    id: str
    state: Literal["plugged", "leaving", "unplugged"] = "plugged"
    contacts: int = 0  # of the bus when it was taken away, or the machine reset

    @property
    def path(self) -> str:
        return f"/machine/peripheral/{self.id}" if self.id else f"/machine/peripheral-anon/{self.driver}"


class Plugging:
    """The devices of a machine by id. A device that is there from the start has its driver's name for an id.

    All calls belong to the loop's thread.
    """

    def __init__(self, services: Services, emit: Emit) -> None:
        self._services = services
        self._emit = emit
        self._plugs: list[_Plug] = []
        for driver, attribute in DRIVERS.items():
            device = getattr(services, attribute)
            if device is not None:
                self._plugs.append(_Plug(driver, device, driver))

    def info(self) -> list[dict[str, str]]:
        """Devices that are on the bus or on their way off it."""
        return [
            {"driver": each.driver, "id": each.id, "path": each.path}
            for each in self._plugs
            if each.state != "unplugged"
        ]

    def device(self, driver: str) -> VmbusDevice | None:
        """The device of that kind, on the bus or away; None if the machine has none."""
        return next((each.device for each in self._plugs if each.driver == driver), None)

    def reset(self) -> None:
        """The machine is reset: the bus tells devices that are on it, this those that are not."""
        for plug in self._plugs:
            if plug.state != "plugged":
                plug.device.reset()
                plug.contacts = self._services.bus.contacts

    def remove(self, id: str) -> None:
        """Take away the device with this id or path; DEVICE_DELETED when the guest has let go of it."""
        plug = next((each for each in self._plugs if each.state != "unplugged" and id in (each.id, each.path)), None)
        if plug is None:
            raise NotFoundError(f"Device '{id}' not found")
        if plug.state == "leaving":
            raise ConfigError(f"Device {id} is already in the process of unplug")
        plug.state = "leaving"
        plug.contacts = self._services.bus.contacts
        setattr(self._services, DRIVERS[plug.driver], None)
        self._services.bus.remove(plug.device, lambda: self._gone(plug))

    def _gone(self, plug: _Plug) -> None:
        plug.state = "unplugged"
        self._emit("DEVICE_DELETED", ({"device": plug.id} if plug.id else {}) | {"path": plug.path})

    def add(self, driver: str, id: str) -> None:
        """Put a device back under a new id ("" for none). Raises ConfigError in QEMU's words."""
        if driver not in DRIVERS:
            raise ConfigError(f"'{driver}' is not a valid device model name")
        if id and any(each.id == id and each.state != "unplugged" for each in self._plugs):
            raise ConfigError(f"Duplicate device ID '{id}'")
        plug = next((each for each in self._plugs if each.driver == driver), None)
        if plug is None:
            raise ConfigError(f"Device '{driver}' can not be hotplugged on this machine")
        if plug.state == "leaving":
            raise ConfigError(f"Device '{driver}' is still in the process of unplug")
        if plug.state == "plugged":
            raise ConfigError(f"No free place for device '{driver}': there is one of a kind")
        if self._services.bus.contacts != plug.contacts:
            plug.device.restarted()
        plug.id, plug.state = id, "plugged"
        setattr(self._services, DRIVERS[driver], plug.device)
        self._services.bus.add(plug.device)
