"""A machine's network cards, as the monitor reads and changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.errors import NotFoundError
from pyvmm.machine.device_set import DeviceSet

if TYPE_CHECKING:
    from pyvmm.devices.netvsc import Netvsc


class NetworkCards:
    """The cards on a machine's bus. The device is imported for a machine that has one only."""

    def __init__(self, devices: DeviceSet) -> None:
        self._devices = devices

    def info(self) -> list[qapi.NetInfo]:
        """Return one entry per network card."""
        return [each.info(name) for name, each in self._cards()]

    def rx_filters(self) -> list[qapi.RxFilterInfo]:
        """Return QEMU's RxFilterInfo of each network card."""
        return [each.rx_filter(name) for name, each in self._cards()]

    def set_link(self, name: str, up: bool) -> None:
        """Plug in a network card's cable, or pull it out. Raises NotFoundError."""
        for each, card in self._cards():
            if each == name:
                card.set_plugged(up)
                return
        raise NotFoundError(f"Device '{name}' not found")

    def _cards(self) -> list[tuple[str, Netvsc]]:
        if "netvsc" not in self._devices.kinds:
            return []
        from pyvmm.devices.netvsc import Netvsc

        return self._devices.of_kind(Netvsc)
