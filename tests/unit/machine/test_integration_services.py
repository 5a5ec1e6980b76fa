"""What clients ask of the guest's integration services, with real devices and a guest played by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.devices.fcopy import FileCopy
from pyvmm.devices.keyboard import Keyboard
from pyvmm.devices.kvp import Kvp
from pyvmm.devices.vss import Vss
from pyvmm.errors import ConfigError
from pyvmm.machine.integration import Integration


class Devices:
    """The devices of a machine, as Integration uses them."""

    def __init__(self, **devices: Any) -> None:
        self._devices = devices

    def find(self, kind: type[Any]) -> Any:
        return next((each for each in self._devices.values() if isinstance(each, kind)), None)

    def device(self, driver: str) -> Any:
        return self._devices.get(driver)


def integration(**devices: Any) -> Integration:
    return Integration(Devices(**devices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("kvp", lambda i: i.kvp_info()),
        ("kvp", lambda i: i.kvp_set("a", "b")),
        ("vss", lambda i: i.freeze(1, print)),
        ("vss", lambda i: i.thaw(print)),
        ("fcopy", lambda i: i.file_end(True, print)),
        ("keyboard", lambda i: i.press(["a"], 0.1)),
    ],
)
def test_a_machine_without_the_device_says_how_to_get_it(name: str, call: Any) -> None:
    with pytest.raises(ConfigError, match=f"no device {name}: `pyvmm run --device {name}`"):
        call(integration())


@pytest.mark.parametrize(
    "call",
    [
        lambda i: i.freeze(1, print),
        lambda i: i.thaw(print),
        lambda i: i.file_start("/", "x", 1, overwrite=True, create=True, done=print),
        lambda i: i.file_write(b"x", print),
        lambda i: i.file_end(False, print),
        lambda i: i.press(["a", 0x1E], 0.1),
        lambda i: i.press(["nothing"], 0.1),
        lambda i: i.kvp_set("absent", None),
    ],
)
def test_without_a_driver_in_the_guest_nothing_can_be_asked(call: Any) -> None:
    with pytest.raises(ConfigError):
        call(integration(kvp=Kvp(), vss=Vss(), fcopy=FileCopy(), keyboard=Keyboard()))


def test_facts_are_the_guests_name_system_and_addresses() -> None:
    kvp = Kvp()
    services = integration(kvp=kvp)
    assert services.facts() is None
    assert integration().facts() is None
    kvp.auto = {
        "FullyQualifiedDomainName": "web.example",
        "OSName": "Debian GNU/Linux",
        "OSVersion": "12",
        "NetworkAddressIPv4": "10.0.2.15;192.168.1.1",
        "NetworkAddressIPv6": "",
    }
    assert services.facts() == {
        "name": "web.example",
        "os": "Debian GNU/Linux 12",
        "addresses": ["10.0.2.15", "192.168.1.1"],
    }


def test_an_error_in_place_of_the_name_is_not_shown() -> None:
    kvp = Kvp()
    kvp.auto = {"FullyQualifiedDomainName": "getaddrinfo failed: 0xfffffffd Temporary failure in name resolution"}
    assert integration(kvp=kvp).facts() == {"name": "", "os": "", "addresses": []}


def test_values_are_shown_with_those_that_the_guest_refused() -> None:
    kvp = Kvp()
    services = integration(kvp=kvp)
    services.kvp_set("color", "blue")
    kvp.refused["color"] = 0x80004005
    assert services.kvp_info() == {
        "ready": False,
        "auto": {},
        "guest": {},
        "external": {"color": "blue"},
        "refused": {"color": "0x80004005"},
    }
    services.kvp_set("color", None)
    assert services.kvp_info()["external"] == {}
