"""What hv_balloon does when a call of its own fails: an allocation, a thread, a channel, a packet, the hypercall."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from pyvmm.devices.balloon.protocol import MessageType
from tests.hv.guest_actions import BALLOON, bind, free_memory, report_at_once, unbind
from tests.hv.test_faults_suspend import hibernate

MIB = 1 << 20
EIO, EAGAIN, ENOMEM, EBUSY, EEXIST = -5, -11, -12, -16, -17
grows = pytest.mark.pyvmm(memory="512M,max=1G")


@contextmanager
def failing(vm, callee, in_, returns, *, times=1, skip=0, module="hv_balloon"):
    """Around what meets failing calls; at least one must."""
    forced = vm.fail(callee, in_=in_, returns=returns, times=times, skip=skip, module=module)
    try:
        yield forced
    finally:
        vm.machine.traps.allow(forced)
    assert forced.done, f"{callee} was not called in {in_}"


def bind_that_fails(vm, callee, in_, returns, *, skip=0):
    """Bind the driver anew with one failing call, and once more without."""
    vm.balloon.unbind()
    with failing(vm, callee, in_, returns, skip=skip):
        vm.run(bind("hv_balloon", BALLOON))
    assert not vm.balloon.ready
    vm.balloon.bind()
    assert vm.balloon.resize("450M").reached
    assert vm.survives()


def test_a_channel_that_cannot_be_opened(vm):
    bind_that_fails(vm, "vmbus_open", "balloon_connect_vsp", EIO)


def test_a_version_request_that_cannot_be_sent(vm):
    bind_that_fails(vm, "vmbus_sendpacket", "balloon_connect_vsp", EAGAIN)


def test_capabilities_that_cannot_be_sent(vm):
    bind_that_fails(vm, "vmbus_sendpacket", "balloon_connect_vsp", EAGAIN, skip=1)


def test_page_reporting_that_somebody_else_has(vm, guest):
    vm.balloon.unbind()
    with failing(vm, "page_reporting_register", "", EBUSY):
        vm.balloon.bind()
    assert guest.dmesg("Failed to enable cold memory discard")
    vm.balloon.unbind()
    assert vm.survives()


def test_a_host_without_page_reporting(vm, guest):
    vm.balloon.unbind()
    guest.sh("echo 'module hv_balloon +p' >/sys/kernel/debug/dynamic_debug/control")
    with failing(vm, "hv_query_ext_cap", "", 0):
        vm.balloon.bind()
    assert guest.dmesg("Cold memory discard hint not supported")
    assert vm.balloon.resize("450M").reached
    assert vm.survives()


def test_no_pages_for_a_while(vm):
    """The driver answers with what it has got; the host asks again for the rest."""
    with failing(vm, "*alloc_pages*", "balloon_up", 0, times=4):
        vm.balloon.resize("450M")
    assert vm.balloon.resize("450M").reached


def test_no_pages_in_the_middle_of_an_answer(vm):
    with failing(vm, "*alloc_pages*", "balloon_up", 0, times=2, skip=5):
        vm.balloon.resize("450M")
    assert vm.balloon.resize("450M").reached


def test_pages_whose_answer_cannot_be_sent_go_back(vm, host, guest):
    before = guest.memory_total
    with host.balloon.silent(), failing(vm, "vmbus_sendpacket", "balloon_up", EIO) as forced:
        host.balloon.send_balloon(20000)
        vm.until(lambda: forced.done, 10, "the driver's answer")
        vm.run_for(0.5)
        assert guest.memory_total == before
    assert vm.survives()


def test_pages_are_back_whatever_becomes_of_the_answer(vm, host, guest):
    before = guest.memory_total
    with host.balloon.silent():
        pages = host.balloon.take(5000)
        with failing(vm, "vmbus_sendpacket", "balloon_onchannelcallback", EAGAIN) as forced:
            host.balloon.send_unballoon(pages)
            vm.until(lambda: forced.done, 10, "the driver's answer")
            vm.run_for(0.2)
        assert guest.memory_total == before


def test_a_status_report_that_cannot_be_sent(vm, host):
    report_at_once(vm)
    with failing(vm, "vmbus_sendpacket", "post_status", EAGAIN) as forced:
        vm.until(lambda: forced.done, 5, "the driver's report")
    since = len(host.balloon.answers(MessageType.STATUS_REPORT))
    host.balloon.wait_for(MessageType.STATUS_REPORT, 5, since=since)


@pytest.mark.parametrize("status", [5, 6], ids=["invalid-parameter", "denied"])
def test_reports_of_free_pages_that_are_refused(vm, guest, status):
    """Linux 6.12 asks for larger ranges after 5 (an older host has no small ones), and stops after some others."""
    vm.faults.add(f"hypercall.out:change,call=EXT_MEMORY_HEAT_HINT,to.status={status}")
    for _ in range(2):
        free_memory(vm, 60)
        vm.run_for(2.2)
    assert guest.dmesg("Cold memory discard hypercall failed")


def test_a_hypervisor_that_hibernates_the_guest_has_no_use_for_dynamic_memory(vm, host, guest):
    """Where S4 is enabled by the host the driver negotiates, and ignores requests."""
    vm.balloon.unbind()
    with failing(vm, "hv_is_hibernation_supported", "balloon_probe", 1):
        vm.balloon.bind()
    before = guest.memory_total
    host.balloon.send_balloon(100)
    host.balloon.send_unballoon([(1 << 20, 1)])
    host.balloon.send_hot_add((0x200000, 0x8000))
    vm.run_for(1)
    assert guest.memory_total == before
    vm.balloon.unbind()
    assert vm.survives()


@grows
@pytest.mark.parametrize("code", [ENOMEM, EEXIST, EIO], ids=["no-memory", "is-there", "other"])
def test_memory_that_cannot_be_added(vm, host, guest, code):
    start, pages = host.memory.hot_add_range(128 * MIB)
    before = guest.memory_total
    with host.balloon.silent(), failing(vm, "*add_memory*", "hot_add_req", code):
        added, _ = host.balloon.hot_add(start, pages, (start, pages))
    assert (added, guest.memory_total) == (0, before)
    assert guest.dmesg(f"hot_add memory failed error is {code}")


@grows
def test_no_memory_to_note_a_region(vm, host, guest):
    start, pages = host.memory.hot_add_range(128 * MIB)
    with host.balloon.silent():
        with failing(vm, "*kmalloc*", "hot_add_req", 0):
            assert host.balloon.hot_add(start, pages, (start, pages))[0] == 0
        assert host.balloon.hot_add(start, pages, (start, pages))[0] == pages


@grows
def test_no_memory_to_note_a_gap(vm, host, guest):
    start, pages = host.memory.hot_add_range(256 * MIB)
    with host.balloon.silent():
        host.balloon.hot_add(start, pages // 4, (start, pages))
        with failing(vm, "*kmalloc*", "hot_add_req", 0):
            assert host.balloon.hot_add(start + pages * 5 // 8, pages // 8)[0] == 0


def test_unbind_and_bind_while_pages_are_out(vm):
    vm.balloon.resize("400M")
    vm.guest.sh(unbind("hv_balloon", BALLOON))
    vm.balloon.bind()
    assert vm.balloon.resize("512M").reached
    assert vm.survives()


@pytest.mark.pyvmm(append="hibernate=nocompress")
def test_a_hibernation_that_fails_leaves_the_driver_at_work(vm, host):
    hibernate(vm, host)
    vm.until(lambda: vm.balloon.ready, 20, "hv_balloon's negotiation")
    assert vm.balloon.resize("450M").reached


@pytest.mark.pyvmm(append="hibernate=nocompress")
def test_resume_without_a_thread(vm, host):
    """The kernel says so and goes on; the driver has a channel and nobody to report."""
    forced = vm.fail("kthread_create_on_node", in_="balloon_resume", returns=ENOMEM)
    hibernate(vm, host)
    vm.until(lambda: forced.done, 20, "the driver's thread")
    vm.console.expect(r"vmbus_resume.* returns -12")
