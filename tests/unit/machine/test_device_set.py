"""Devices off and on a bus that no guest, or a guest played by hand, is connected to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from pyvmm.errors import ConfigError, NotFoundError
from pyvmm.machine import devices as table
from pyvmm.machine.device_set import MAX_OF_A_KIND, DeviceSet
from pyvmm.machine.devices import Kind
from pyvmm.machine.inventory import vmbus_devices
from pyvmm.vmbus.device import VmbusDevice
from pyvmm.vmbus.offer import Offer


class Device(VmbusDevice):
    OFFER = Offer("any", UUID(int=1), UUID(int=2))

    def __init__(self) -> None:
        self.told: list[str] = []

    def reset(self) -> None:
        self.told.append("reset")

    def bus_connected(self) -> None:
        self.told.append("bus_connected")


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


class Balloon(Device):
    OFFER = Offer("hv-balloon", UUID(int=3), UUID(int=4))


class Heartbeat(Device):
    OFFER = Offer("heartbeat", UUID(int=5), UUID(int=6))


class Bench:
    def __init__(self, *devices: str) -> None:
        self.bus = Bus()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.devices = DeviceSet(
            self.bus,  # type: ignore[arg-type]
            SimpleNamespace(config=SimpleNamespace(devices=devices)),  # type: ignore[arg-type]
            self.events.append,
        )

    def unplug(self, id: str) -> None:
        self.devices.remove(id)
        self.bus.leaving.pop()()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    kinds = {
        "hv-balloon": Kind(lambda parts: Balloon(), ""),
        "heartbeat": Kind(lambda parts: Heartbeat(), ""),
        "timesync": Kind(lambda parts: Device(), ""),
        "disk": Kind(lambda parts: Device(), "", several=True),
    }
    monkeypatch.setattr(table, "DEVICES", kinds)
    monkeypatch.setattr("pyvmm.machine.device_set.DEVICES", kinds)
    return Bench("hv-balloon", "heartbeat")


def test_a_device_is_deleted_when_the_guest_has_let_go_of_it(bench: Bench) -> None:
    bench.devices.remove("hv-balloon")
    assert bench.devices.find(Balloon) is None
    assert not bench.events
    bench.bus.leaving.pop()()
    assert bench.events == [
        ("DEVICE_DELETED", {"device": "hv-balloon", "path": "/machine/peripheral/hv-balloon"}),
    ]
    assert [each["id"] for each in bench.devices.info()] == ["heartbeat"]


def test_the_same_device_comes_back_with_its_books(bench: Bench) -> None:
    before = bench.devices.find(Balloon)
    bench.unplug("hv-balloon")
    bench.devices.add("hv-balloon", "b1")
    assert bench.devices.find(Balloon) is before
    assert before is not None and before.told == []
    assert ("hv-balloon", "b1", "/machine/peripheral/b1") in [
        (each["driver"], each["id"], each["path"]) for each in bench.devices.info()
    ]


def test_a_device_hears_of_a_new_kernel_when_it_is_back(bench: Bench) -> None:
    bench.unplug("heartbeat")
    bench.bus.contacts = 1
    bench.devices.add("heartbeat", "heartbeat")
    assert bench.devices.find(Heartbeat) is not None
    assert bench.devices.find(Heartbeat).told == ["bus_connected"]


def test_a_device_that_is_away_is_reset_with_the_machine(bench: Bench) -> None:
    device = bench.devices.find(Heartbeat)
    bench.unplug("heartbeat")
    bench.devices.reset()
    bench.devices.add("heartbeat", "heartbeat")
    assert device is not None and device.told == ["reset"]
    bench.devices.reset()
    assert device.told == ["reset"], "on the bus it is the bus's to tell"


def test_a_device_without_an_id_goes_by_its_path(bench: Bench) -> None:
    bench.unplug("heartbeat")
    bench.devices.add("heartbeat", "")
    path = bench.devices.info()[1]["path"]
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
        bench.devices.add(driver, id)


def test_what_is_not_there_or_leaves_already_cannot_be_removed(bench: Bench) -> None:
    for name in ("nope", "", "shutdown"):
        with pytest.raises(NotFoundError, match="not found"):
            bench.devices.remove(name)
    bench.devices.remove("heartbeat")
    with pytest.raises(ConfigError, match="already in the process of unplug"):
        bench.devices.remove("heartbeat")
    with pytest.raises(ConfigError, match="still in the process of unplug"):
        bench.devices.add("heartbeat", "x")


def test_channels_come_by_relid_with_what_device_del_takes(bench: Bench) -> None:
    bench.unplug("hv-balloon")
    bench.devices.add("hv-balloon", "")
    channels = [{"relid": 2, "guid": str(UUID(int=6))}, {"relid": 1, "guid": str(UUID(int=4))}]
    rows = vmbus_devices(channels, bench.devices)
    assert [(row["relid"], row["id"], row["path"]) for row in rows] == [
        (1, "", "/machine/peripheral-anon/hv-balloon"),
        (2, "heartbeat", "/machine/peripheral/heartbeat"),
    ]
    bench.devices.remove(rows[0]["path"])


def test_several_of_a_kind_have_instances_ids_and_paths_of_their_own(bench: Bench) -> None:
    several = Bench("disk", "disk")
    several.devices.add("disk", "third")
    several.devices.add("disk", "")
    rows = several.devices.info()
    assert [row["id"] for row in rows] == ["disk", "disk1", "third", ""]
    assert rows[3]["path"] == "/machine/peripheral-anon/disk3"
    assert len({row["guid"] for row in rows}) == 4
    assert len({each.offer.type for each in several.bus.on}) == 1


def test_one_of_several_that_was_taken_off_comes_back_before_another_is_made(bench: Bench) -> None:
    several = Bench("disk", "disk")
    second = several.bus.on[1]
    several.unplug("disk1")
    several.devices.add("disk", "again")
    assert several.bus.on[1] is second


def test_a_machine_has_so_many_of_a_kind_and_no_more(bench: Bench) -> None:
    several = Bench(*["disk"] * MAX_OF_A_KIND)
    with pytest.raises(ConfigError, match="there is 64 of a kind"):
        several.devices.add("disk", "")
