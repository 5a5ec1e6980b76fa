"""Linux's hv_kvp_daemon sets and tells the addresses of a network card, by the script of our images."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.pyvmm(devices="kvp+netvsc")

STATIC = {
    "card": "netvsc",
    "dhcp": False,
    "addresses": ["10.9.9.9/24"],
    "gateways": ["10.9.9.1"],
    "dns": ["10.9.9.2"],
}


def test_a_card_s_addresses_are_set_and_told(vm, guest):
    services = vm.machine.monitor.integration
    vm.until(lambda: services.kvp_info()["ready"], 30, "hv_kvp_daemon")
    told: list[Any] = []
    services.set_addresses("netvsc", STATIC, told.append)
    vm.until(lambda: told, 30, "the daemon's answer")
    assert told == [""]
    assert "10.9.9.9/24" in guest.sh("ip addr show eth0")
    assert guest.sh("cat /etc/resolv.conf") == "nameserver 10.9.9.2"
    services.addresses("netvsc", told.append)
    vm.until(lambda: len(told) == 2, 30, "the card's addresses")
    assert "10.9.9.9/24" in told[1]["addresses"]
    assert told[1]["gateways"] == ["10.9.9.1"] and told[1]["dns"] == ["10.9.9.2"] and not told[1]["dhcp"]
    vm.survives()
