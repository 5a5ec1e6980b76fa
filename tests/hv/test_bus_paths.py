"""hv_vmbus where it is seldom: its tracepoints, its debug messages, sysfs, two CPUs, drivers bound by hand."""

from __future__ import annotations

import pytest

from tests.hv.guest_actions import BALLOON, HEARTBEAT, NO_DRIVER, bind, devices, move_balloon, unbind

DEVICES = "/sys/bus/vmbus/devices"
TRACES = "/sys/kernel/tracing"
CONTROL = "/sys/kernel/debug/dynamic_debug/control"


def channels_come_and_go(vm, host):
    """Let the bus do what it can: devices with and without driver come and go, channels close and open."""
    before = devices(vm)
    vm.balloon.unbind()
    vm.balloon.bind()
    vm.balloon.resize("480M")
    host.vmbus.offer(NO_DRIVER, relid=700)
    vm.until(lambda: devices(vm) > before, 10, "a device")
    host.vmbus.rescind(700)
    host.vmbus.rescind(701)  # never offered
    vm.until(lambda: devices(vm) == before, 10, "its end")
    device = host.vmbus.add(NO_DRIVER)
    vm.run_for(0.5)
    host.vmbus.remove(device)
    vm.run_for(0.5)


def test_every_tracepoint_tells(vm, host, guest):
    guest.sh(f"echo 1 >{TRACES}/events/hyperv/enable")
    channels_come_and_go(vm, host)
    text = guest.sh(f"cat {TRACES}/trace")
    guest.sh(f"echo 0 >{TRACES}/events/hyperv/enable")
    for name in ("onoffer", "onoffer_rescind", "establish_gpadl_header", "open", "teardown_gpadl", "release_relid"):
        assert f"vmbus_{name}:" in text, name
    assert vm.survives()


def test_debug_messages_are_switched_on(vm, host, guest):
    guest.sh(f"echo 'module hv_vmbus +p' >{CONTROL}")
    channels_come_and_go(vm, host)
    guest.sh(f"echo 'module hv_vmbus -p' >{CONTROL}")
    assert vm.survives()


def test_every_attribute_can_be_read(vm, guest):
    read = f"cd {DEVICES}; cat */* */channels/*/* 2>/dev/null"
    opened = guest.sh(f"{read} | wc -l")
    vm.balloon.unbind()
    guest.sh(unbind("hv_utils", HEARTBEAT))
    assert 100 < int(guest.sh(f"{read} | wc -l")) < int(opened), "a closed channel has no rings"
    assert vm.survives()


def test_a_driver_takes_a_device_that_it_does_not_know(vm, guest):
    """By a new id, and by driver_override; wrong ids are refused."""
    new = "/sys/bus/vmbus/drivers/hv_balloon"
    assert vm.run(f"echo nonsense >{new}/new_id").status != 0
    assert vm.run(f"echo {NO_DRIVER} >{new}/remove_id").status != 0
    guest.sh(f"echo {NO_DRIVER} >{new}/new_id; echo {NO_DRIVER} >{new}/remove_id")
    guest.sh(f"echo hv_utils >{DEVICES}/{BALLOON}/driver_override; cat {DEVICES}/{BALLOON}/driver_override")
    vm.balloon.unbind()
    assert vm.run(bind("hv_balloon", BALLOON)).status != 0, "only the named driver may have it"
    guest.sh(f"echo >{DEVICES}/{BALLOON}/driver_override")
    vm.balloon.bind()


def test_a_sub_channel_is_offered(vm, host):
    """The balloon has one channel; another of its instance is taken and nobody opens it."""
    served = host.vmbus._served("hv-balloon")
    host.vmbus.offer(served.offer.type, relid=702, instance=served.offer.instance, sub_channel=1)
    vm.run_for(0.5)
    host.vmbus.rescind(702)
    vm.run_for(0.5)
    assert vm.survives(without=["devices"])


@pytest.mark.pyvmm(cpus=2)
def test_a_channel_moves_to_the_other_cpu_and_back(vm, host, guest):
    guest.sh(f"echo 1 >{TRACES}/events/hyperv/vmbus_send_modifychannel/enable")
    where = f"cat {DEVICES}/{BALLOON}/channels/*/cpu"
    first = guest.sh(where)
    for _ in range(2):
        guest.sh(move_balloon())
        assert vm.balloon.resize("480M").reached and vm.balloon.resize("512M").reached
    assert guest.sh(where) == first
    assert vm.run(f"echo 99 >$(ls {DEVICES}/{BALLOON}/channels/*/cpu)").status != 0
    assert vm.survives()


@pytest.mark.pyvmm(cpus=2)
def test_a_closed_channel_does_not_move(vm, guest):
    vm.balloon.unbind()
    assert vm.run(move_balloon()).status != 0
    vm.balloon.bind()
    assert vm.balloon.resize("480M").reached


@pytest.mark.pyvmm(cpus=2)
def test_a_cpu_goes_offline_and_online(vm, guest):
    """A CPU with a channel of its own stays: the bus moves them first, or refuses."""
    cpu = "/sys/devices/system/cpu/cpu1/online"
    gone = vm.run(f"echo 0 >{cpu}").status == 0
    if not gone:
        guest.sh(f"for c in {DEVICES}/*/channels/*/cpu; do echo 0 >$c; done; echo 0 >{cpu}")
    assert vm.balloon.resize("480M").reached
    guest.sh(f"echo 1 >{cpu}")
    assert guest.sh("nproc") == "2"
    assert vm.survives()
