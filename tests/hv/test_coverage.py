"""Coverage of the guest's modules, and calls in them that fail (docs/coverage.md)."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigError
from pyvmm.testbed.balloon import BALLOON_ID

RESIZED = {"balloon_up", "free_balloon_pages", "dm_thread_func", "balloon_onchannelcallback", "post_status"}
"""Functions of a resize, and of the thread that wakes up each second."""
TRACE = "/sys/kernel/tracing/events/hyperv/balloon_status/enable"


def given(figures):
    """Blocks that ran to give and take pages: the status reports of a guest that is up for 45 s are no part of it."""
    return sum(each.covered for each in figures.functions if each.name in ("balloon_up", "free_balloon_pages"))


def test_what_runs_is_seen_and_its_breakpoints_are_gone(vm, guest):
    vm.cover.start("hv_balloon", "hv_vmbus")
    vm.balloon.resize("400M")
    vm.balloon.resize("512M")
    vm.run_for(1.5)  # the driver's thread wakes up each second
    figures = vm.cover.figures("hv_balloon")
    assert {each.name for each in figures.functions if each.covered} >= RESIZED
    vm.balloon.resize("400M")
    vm.balloon.resize("512M")
    assert given(vm.cover.figures("hv_balloon")) <= given(figures) + 5, "the first time has seen it all"
    guest.sh(f"echo 1 >{TRACE}; cat /sys/kernel/debug/hv-balloon >/dev/null; echo 0 >{TRACE}")
    assert vm.cover.figures("hv_balloon").covered > figures.covered
    record = vm.cover.stop()
    assert vm.machine.traps.left == 0
    assert {each.module for each in record.modules.values()} == {"hv_balloon", "hv_vmbus"}
    assert vm.survives()


def test_coverage_goes_on_after_a_hibernation_that_failed(vm, guest):
    vm.cover.start("hv_balloon")
    guest.sh("echo disk >/sys/power/state 2>/dev/null || true", timeout=60)
    ran = {each.name for each in vm.cover.figures("hv_balloon").functions if each.covered}
    assert vm.machine.traps.modules["hv_balloon"].state == "on"
    assert vm.run("true").status == 0
    if not guest.dmesg("PM: (hibernation: )?(Cannot find swap|Basic memory bitmaps freed)"):
        pytest.skip("this kernel did not come as far as the devices' suspension")
    assert {"balloon_suspend", "balloon_resume"} <= ran


def test_a_call_of_the_driver_fails_and_it_tries_again(vm):
    forced = vm.fail("vmbus_sendpacket", in_="balloon_up", returns=-11)  # EAGAIN
    assert vm.balloon.resize("400M").actual == 400 << 20
    assert forced.done == 1
    assert vm.survives()


def test_the_driver_without_its_thread_is_not_bound(vm, guest):
    vm.balloon.unbind()
    forced = vm.fail("kthread_create_on_node", returns=-12)
    guest.sh(f"echo {BALLOON_ID} >/sys/bus/vmbus/drivers/hv_balloon/bind || true")
    assert forced.done == 1
    assert not vm.balloon.ready
    vm.balloon.bind()
    assert vm.balloon.ready
    assert vm.survives()


def test_a_call_that_there_is_not_is_answered_with_those_there_are(vm):
    with pytest.raises(ConfigError, match="calls vmbus_open not in balloon_up, but in balloon_connect_vsp"):
        vm.fail("vmbus_open", in_="balloon_up")
