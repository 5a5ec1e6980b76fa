"""The VMBus as a test sees it: devices, channels and their counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM


class Bus:
    """The VMBus of a guest."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    def devices(self) -> list[dict[str, Any]]:
        """Return each device of the bus with its channel's state and counters, as `info vmbus` shows them."""
        return [dict(device) for device in self._vm.machine.monitor.info_vmbus()]

    def device(self, name: str) -> dict[str, Any]:
        """Return one device by its name, `hv-balloon` for instance. Raises KeyError."""
        devices = self.devices()
        for device in devices:
            if device["name"] == name:
                return device
        raise KeyError(f"no device {name!r}: there are {', '.join(device['name'] for device in devices)}")

    @property
    def version(self) -> tuple[int, int] | None:
        """The negotiated protocol version as (major, minor), None before."""
        version = self._vm.machine.services.bus.version
        return None if version is None else (version >> 16, version & 0xFFFF)
