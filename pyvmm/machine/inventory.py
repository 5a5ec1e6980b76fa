"""What a machine is made of, as the monitor lists it.

Source: QEMU qapi/machine.json, MemoryDeviceInfo and HvBalloonDeviceInfo; hw/hyperv/hv-balloon.c for what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pyvmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.machine.hotplug import HotAddWindow
    from pyvmm.machine.plugging import Plugging

BALLOON = "hv-balloon"


def plugged_memory(plugging: Plugging) -> int:
    """Bytes hot-added to the guest by now, in doubt or not: only a machine reset takes them away."""
    balloon = cast("BalloonDevice | None", plugging.device(BALLOON))
    if balloon is None:
        return 0
    ledger = balloon.machine.ledger
    return (ledger.added_pages + ledger.doubtful_pages) * PAGE_SIZE


def vmbus_devices(channels: list[dict[str, Any]], plugging: Plugging) -> list[dict[str, Any]]:
    """The bus's `channels` by relid, each with its device's `id` and `path`, either of which device_del takes."""
    named = {each["driver"]: {"id": each["id"], "path": each["path"]} for each in plugging.info()}
    return [each | named.get(each["name"], {}) for each in sorted(channels, key=lambda each: each["relid"])]


def memory_devices(plugging: Plugging, window: HotAddWindow | None) -> list[dict[str, Any]]:
    """MemoryDeviceInfo of the balloon, which is the only device here that brings memory."""
    found: list[dict[str, Any]] = []
    for each in plugging.info():
        if each["driver"] == BALLOON:
            data: dict[str, Any] = {"id": each["id"]} if each["id"] else {}
            if window is not None:
                data |= {"memaddr": window.gpa, "memdev": "/objects/hot-add"}
            found.append(
                {"type": BALLOON, "data": data | {"max-size": 0 if window is None else window.pages * PAGE_SIZE}}
            )
    return found


class SizeWatch:
    """Emits MEMORY_DEVICE_SIZE_CHANGE when the balloon has brought more memory, or a reset took it away."""

    def __init__(self, plugging: Plugging, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._plugging, self._emit = plugging, emit
        self._size = plugged_memory(plugging)

    def look(self) -> None:
        """Emit the event if the size is another than before."""
        size = plugged_memory(self._plugging)
        if size != self._size:
            self._size = size
            for each in self._plugging.info():
                if each["driver"] == BALLOON:
                    id = {"id": each["id"]} if each["id"] else {}
                    self._emit("MEMORY_DEVICE_SIZE_CHANGE", id | {"size": size, "qom-path": each["path"]})
