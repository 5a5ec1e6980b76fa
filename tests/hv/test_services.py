"""Linux's hv_utils and hyperv-keyboard with KVP, VSS, file copy and keyboard; the daemons are Debian's."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest

pytestmark = pytest.mark.pyvmm(devices="kvp+vss+fcopy+keyboard")


def services(vm):
    return vm.machine.monitor.integration


def answered(vm, begin: Callable[[Callable[[str], object]], object]) -> str:
    """What `begin(done)` is answered with."""
    told: list[str] = []
    begin(told.append)
    vm.until(lambda: told, 30, "the guest's answer")
    return told[0]


def test_the_guest_tells_its_name_and_system(vm):
    vm.until(lambda: services(vm).facts(), 30, "the guest's facts")
    facts = services(vm).facts()
    release = vm.run("uname -r").stdout.split("-")[0]
    assert facts["name"] == "guest"
    assert facts["os"].endswith(release) or release in facts["os"]


def test_values_go_both_ways(vm, guest):
    services(vm).kvp_set("color", "blue gr\u00fcn")
    record = "printf load; head -c 508 /dev/zero; printf low; head -c 2045 /dev/zero"
    guest.sh(f"{{ {record}; }} >/var/lib/hyperv/.kvp_pool_1")
    vm.until(lambda: services(vm).kvp_info()["guest"] == {"load": "low"}, 30, "the guest's value")
    stored = guest.sh("tr '\\0' ' ' </var/lib/hyperv/.kvp_pool_0")
    assert stored.startswith("color ") and "blue gr\u00fcn " in stored
    services(vm).kvp_set("color", None)
    vm.until(lambda: guest.sh("wc -c </var/lib/hyperv/.kvp_pool_0").strip() == "0", 10, "the value's end")
    vm.survives()


def test_file_systems_are_frozen_and_thawed(vm):
    assert answered(vm, lambda done: services(vm).freeze(30, done)) == ""
    assert answered(vm, lambda done: services(vm).thaw(done)) == ""
    vm.survives()


def test_a_file_is_copied_into_the_guest(vm, guest):
    data = bytes(n * 7 % 251 for n in range(20_000))
    start = services(vm).file_start
    told = [
        answered(vm, lambda done: start("/root/new", "gr.bin", len(data), overwrite=True, create=True, done=done)),
        answered(vm, lambda done: services(vm).file_write(data, done)),
        answered(vm, lambda done: services(vm).file_end(True, done)),
    ]
    assert told == ["", "", ""]
    assert sha256(data).hexdigest() in guest.sh("sha256sum /root/new/gr.bin")


def test_keys_reach_sysrq(vm, guest):
    guest.sh("echo 1 >/proc/sys/kernel/sysrq")
    services(vm).press(["alt", "sysrq", "h"], 0.1)
    vm.until(lambda: guest.dmesg("sysrq: HELP"), 10, "the help of SysRq")


def test_the_services_go_while_their_daemons_run_and_come_back(vm):
    vm.until(lambda: services(vm).facts(), 30, "the guest's facts")
    for name in ("kvp", "vss", "keyboard"):
        vm.machine.monitor.remove_device(name)
    vm.until(lambda: [each for each, _ in vm.events].count("DEVICE_DELETED") == 3, 30, "the devices' end")
    for name in ("kvp", "vss", "keyboard"):
        vm.machine.monitor.add_device(name)
    vm.until(lambda: services(vm).facts(), 30, "the guest's facts again")
    vm.survives()
