"""Devices off and on a bus that no guest, or a guest played by hand, is connected to."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.errors import ConfigError, NotFoundError
from pyvmm.machine.inventory import vmbus_devices
from pyvmm.machine.plugging import Plugging


class Device:
    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []

    def reset(self) -> None:
        self.told.append("reset")

    def restarted(self) -> None:
        self.told.append("restarted")


class Bus:
    """Lets go of a device when the test says so."""

    def __init__(self) -> None:
        self.contacts = 0
        self.on: list[Device] = []
        self.leaving: list[Any] = []

    def add(self, device: Device) -> None:
        self.on.append(device)

    def remove(self, device: Device, gone: Any) -> None:
        self.on.remove(device)
        self.leaving.append(gone)


class Services:
    def __init__(self) -> None:
        self.bus = Bus()
        self.balloon: Device | None = Device("balloon")
        self.heartbeat: Device | None = Device("heartbeat")
        self.shutdown: Device | None = None
        self.timesync: Device | None = None
        self.bus.on = [each for each in (self.balloon, self.heartbeat) if each]


class Bench:
    def __init__(self) -> None:
        self.services = Services()
        self.bus = self.services.bus
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.plugging = Plugging(
            self.services,  # type: ignore[arg-type]
            lambda name, data: self.events.append((name, data)),
        )

    def unplug(self, id: str) -> None:
        self.plugging.remove(id)
        self.bus.leaving.pop()()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_device_is_deleted_when_the_guest_has_let_go_of_it(bench: Bench) -> None:
    bench.plugging.remove("hv-balloon")
    assert bench.services.balloon is None
    assert not bench.events
    bench.bus.leaving.pop()()
    assert bench.events == [
        ("DEVICE_DELETED", {"device": "hv-balloon", "path": "/machine/peripheral/hv-balloon"}),
    ]
    assert [each["id"] for each in bench.plugging.info()] == ["heartbeat"]


def test_the_same_device_comes_back_with_its_books(bench: Bench) -> None:
    before = bench.services.balloon
    bench.unplug("hv-balloon")
    bench.plugging.add("hv-balloon", "b1")
    assert bench.services.balloon is before
    assert before is not None and before.told == []
    assert {"driver": "hv-balloon", "id": "b1", "path": "/machine/peripheral/b1"} in bench.plugging.info()


def test_a_device_hears_of_a_new_kernel_when_it_is_back(bench: Bench) -> None:
    bench.unplug("heartbeat")
    bench.bus.contacts = 1
    bench.plugging.add("heartbeat", "heartbeat")
    assert bench.services.heartbeat is not None
    assert bench.services.heartbeat.told == ["restarted"]


def test_a_device_that_is_away_is_reset_with_the_machine(bench: Bench) -> None:
    device = bench.services.heartbeat
    bench.unplug("heartbeat")
    bench.plugging.reset()
    bench.plugging.add("heartbeat", "heartbeat")
    assert device is not None and device.told == ["reset"]
    bench.plugging.reset()
    assert device.told == ["reset"], "on the bus it is the bus's to tell"


def test_a_device_without_an_id_goes_by_its_path(bench: Bench) -> None:
    bench.unplug("heartbeat")
    bench.plugging.add("heartbeat", "")
    path = bench.plugging.info()[1]["path"]
    bench.unplug(path)
    assert bench.events[-1] == ("DEVICE_DELETED", {"path": path})


@pytest.mark.parametrize(
    ("driver", "id", "text"),
    [
        ("e1000", "", "'e1000' is not a valid device model name"),
        ("heartbeat", "hv-balloon", "Duplicate device ID 'hv-balloon'"),
        ("heartbeat", "x", "No free place for device 'heartbeat'"),
        ("timesync", "x", "Device 'timesync' can not be hotplugged on this machine"),
    ],
)
def test_what_cannot_be_added_is_refused(bench: Bench, driver: str, id: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        bench.plugging.add(driver, id)


def test_what_is_not_there_or_leaves_already_cannot_be_removed(bench: Bench) -> None:
    for name in ("nope", "", "shutdown"):
        with pytest.raises(NotFoundError, match="not found"):
            bench.plugging.remove(name)
    bench.plugging.remove("heartbeat")
    with pytest.raises(ConfigError, match="already in the process of unplug"):
        bench.plugging.remove("heartbeat")
    with pytest.raises(ConfigError, match="still in the process of unplug"):
        bench.plugging.add("heartbeat", "x")


def test_channels_come_by_relid_with_what_device_del_takes(bench: Bench) -> None:
    bench.unplug("hv-balloon")
    bench.plugging.add("hv-balloon", "")
    rows = vmbus_devices([{"relid": 2, "name": "heartbeat"}, {"relid": 1, "name": "hv-balloon"}], bench.plugging)
    assert [(row["relid"], row["id"], row["path"]) for row in rows] == [
        (1, "", "/machine/peripheral-anon/hv-balloon"),
        (2, "heartbeat", "/machine/peripheral/heartbeat"),
    ]
    bench.plugging.remove(rows[0]["path"])
