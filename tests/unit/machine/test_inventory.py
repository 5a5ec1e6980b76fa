"""What was hot-added, and the event that tells of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyvmm.machine.inventory import SizeChangeEvents, plugged_memory


class Devices:
    def __init__(self) -> None:
        self.ledger = SimpleNamespace(added_pages=0, unconfirmed_pages=0)
        self.on_bus = True

    def device(self, driver: str) -> Any:
        assert driver == "hv-balloon"
        return SimpleNamespace(machine=SimpleNamespace(ledger=self.ledger))

    def info(self) -> list[dict[str, str]]:
        return [{"driver": "hv-balloon", "id": "b", "path": "/p/b"}] if self.on_bus else []


def test_each_change_is_reported_once() -> None:
    devices, events = Devices(), []
    watch = SizeChangeEvents(devices, events.append)  # type: ignore[arg-type]
    for pages in (0, 256, 256, 0):
        devices.ledger.added_pages = pages
        watch.poll()
    changes = [{"id": "b", "size": size, "qom-path": "/p/b"} for size in (1 << 20, 0)]
    assert events == [("MEMORY_DEVICE_SIZE_CHANGE", change) for change in changes]


def test_memory_stays_the_guests_when_the_balloon_is_away() -> None:
    devices = Devices()
    devices.ledger.added_pages, devices.on_bus = 256, False
    assert plugged_memory(devices) == 1 << 20  # type: ignore[arg-type]
