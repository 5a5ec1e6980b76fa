"""What hv_balloon tells: status reports at each size of the guest, debugfs, its tracepoint and debug messages."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import free_memory, report_at_once

MIB = 1 << 20
DEBUG = "/sys/kernel/debug/hv-balloon"
CONTROL = "/sys/kernel/debug/dynamic_debug/control"
TRACE = "/sys/kernel/tracing/events/hyperv/balloon_status/enable"


def reports(vm, host, count=1):
    """Wait for status reports: the driver looks once a second, and reports what has changed."""
    since = len(host.balloon.answers(MessageType.STATUS_REPORT))
    report_at_once(vm)
    for number in range(count):
        vm.guest.sh(f"dd if=/dev/zero of=/tmp/use{number} bs=1M count=8 2>/dev/null")
        host.balloon.wait_for(MessageType.STATUS_REPORT, 5, since=since + number)


def test_each_size_has_a_floor(vm, host, balloon):
    """The reserve that the driver keeps to the guest grows in steps: below 128, 512 and 2048 MiB."""
    for size in ("300M", "110M", "512M"):
        balloon.resize(size)
        reports(vm, host)
    assert vm.survives()


@pytest.mark.pyvmm(memory="512M,max=2300M")
def test_a_floor_of_more_than_512_mib(vm, host, balloon):
    for size in ("1G", "2300M", "600M"):
        balloon.resize(size)
        reports(vm, host)


def test_debug_messages_are_switched_on(vm, host, guest):
    """The same paths with their messages: CONFIG_DYNAMIC_DEBUG rewrites the driver's code."""
    guest.sh(f"echo 'module hv_balloon +p' >{CONTROL}")
    vm.balloon.resize("448M")
    vm.balloon.resize("512M")
    free_memory(vm, 60)
    vm.run_for(2.2)
    vm.balloon.unbind()
    vm.balloon.bind()
    assert guest.dmesg("hv_balloon: ")
    guest.sh(f"echo 'module hv_balloon -p' >{CONTROL}")


def test_the_tracepoint_is_switched_on(vm, host, guest):
    guest.sh(f"echo 1 >{TRACE}")
    reports(vm, host, 2)
    assert "balloon_status" in guest.sh("cat /sys/kernel/tracing/trace")
    guest.sh(f"echo 0 >{TRACE}")


def test_debugfs_tells_the_state(vm, host, guest):
    text = guest.read(DEBUG)
    assert "host_version" in text
    with host.balloon.silent():
        pages = host.balloon.take(1000)
        assert "1000" in guest.read(DEBUG)
        host.balloon.send_unballoon(pages, more=True)  # it waits for the rest
        vm.run_for(0.2)
        assert guest.read(DEBUG) != text
