"""What hv_vmbus does when a call of its own fails while a channel opens, closes or comes: the bus goes on."""

from __future__ import annotations

import pytest

from tests.hv.guest_actions import BALLOON, NO_DRIVER, bind, devices, unbind
from tests.hv.test_driver_errors import EAGAIN, ENOMEM, failing

NULL = 0


def bound_again(vm):
    """Bind the balloon's driver, and use it."""
    vm.balloon.bind()
    assert vm.balloon.resize("480M").reached


@pytest.mark.parametrize(
    ("callee", "function", "value"),
    [
        ("vmbus_alloc_ring", "vmbus_open", ENOMEM),
        ("*alloc_pages*", "vmbus_alloc_ring", NULL),
        ("hv_ringbuffer_init", "__vmbus_open", ENOMEM),
        ("*kmalloc_*", "__vmbus_open", NULL),
        ("*kmalloc*", "__vmbus_establish_gpadl*", NULL),
        ("*kmalloc*", "hv_ringbuffer_init", NULL),
        ("vmap", "hv_ringbuffer_init", NULL),
        ("hv_post_message", "vmbus_post_msg", 3),
        ("hv_post_message", "vmbus_post_msg", 0x50),
    ],
)
def test_a_channel_that_cannot_be_opened(vm, callee, function, value):
    """The driver is not bound; the next try works."""
    vm.balloon.unbind()
    times = 2 if "alloc_pages" in callee else 1  # the second try is for a smaller piece
    with failing(vm, callee, function, value, times=times, module="hv_vmbus"):
        vm.run(bind("hv_balloon", BALLOON))
    assert not vm.balloon.ready
    bound_again(vm)


@pytest.mark.parametrize("status", [0x12, 0x13, 0x0B], ids=["connection", "buffers", "other"])
def test_a_message_that_the_hypervisor_does_not_take_is_sent_again(vm, status):
    vm.balloon.unbind()
    with failing(vm, "hv_post_message", "vmbus_post_msg", status, times=3, module="hv_vmbus"):
        vm.run(bind("hv_balloon", BALLOON))
    if not vm.balloon.ready:  # a status after which it gives up
        bound_again(vm)
    assert vm.run("true").status == 0


def test_a_channel_whose_memory_stays_the_hosts(vm):
    """No room for the request to take it back: the driver is gone all the same."""
    with failing(vm, "*kmalloc*", "vmbus_teardown_gpadl", NULL, module="hv_vmbus"):
        vm.run(unbind("hv_balloon", BALLOON))
    assert vm.run("true").status == 0


def test_a_close_that_cannot_be_sent(vm):
    with failing(vm, "vmbus_post_msg", "vmbus_close_internal", EAGAIN, module="hv_vmbus"):
        vm.run(unbind("hv_balloon", BALLOON))
    assert vm.run("true").status == 0


@pytest.mark.parametrize(
    ("callee", "function", "value"),
    [
        ("*kmalloc*", "vmbus_onoffer", NULL),
        ("*kmalloc*", "vmbus_device_create", NULL),
        ("device_register", "vmbus_device_register", ENOMEM),
    ],
)
def test_an_offer_that_the_guest_cannot_take(vm, host, callee, function, value):
    before = devices(vm)
    with failing(vm, callee, function, value, module="hv_vmbus") as forced:
        host.vmbus.offer(NO_DRIVER, relid=700)
        vm.until(lambda: forced.done, 10, "the failing call")
    host.vmbus.offer(NO_DRIVER, relid=701)
    vm.until(lambda: devices(vm) > before, 10, "the next offer's device")


@pytest.mark.parametrize("callee", ["kobject_init_and_add", "sysfs_create_group"])
def test_a_channel_without_its_folder_in_sysfs_is_a_bug_for_the_kernel(vm, host, guest, callee):
    """Linux takes the device back as if its channel had been rescinded, and BUG_ON(!channel->rescind) is there."""
    with failing(vm, callee, "vmbus_add_channel_kobj", ENOMEM, module="hv_vmbus") as forced:
        host.vmbus.offer(NO_DRIVER, relid=700)
        vm.until(lambda: forced.done, 10, "the channel's folder")
        vm.run_for(0.5)
    assert guest.dmesg("kernel BUG at drivers/hv/channel_mgmt.c")
    assert guest.dmesg("RIP: .*hv_process_channel_removal")


def test_a_message_that_there_is_no_memory_for(vm, host):
    """It stays in its slot until the next try."""
    before = devices(vm)
    with failing(vm, "*kmalloc*", "vmbus_on_msg_dpc", NULL, module="hv_vmbus") as forced:
        host.vmbus.offer(NO_DRIVER, relid=700)
        vm.until(lambda: forced.done, 10, "the failing call")
    host.vmbus.offer(NO_DRIVER, relid=701)
    vm.until(lambda: devices(vm) > before, 10, "the device")
