"""LIS-Test's cases of runtime memory, Resize-01 to Resize-09, and of a hot add that fails."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon.growth import GUEST_REFUSED

MIB = 1 << 20
BOOT, MAX = 512 * MIB, 1024 * MIB
BLOCK = 128 * MIB

pytestmark = pytest.mark.pyvmm(memory="512M,max=1G")


def can_use_its_memory(guest):
    """Touch most of what the guest says is available."""
    mib = int(guest.sh("grep MemAvailable /proc/meminfo").split()[1]) // 1024 * 7 // 10
    guest.sh(f"dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null")
    return not guest.dmesg("hot_add memory failed|Call Trace|BUG:|WARNING:|Bad page|Out of memory")


def change(balloon, guest, *sizes):
    """Resize to each size in turn; the guest's total follows to the page."""
    for size in sizes:
        before, had = guest.memory_total, balloon.actual
        assert balloon.resize(size).reached
        assert guest.memory_total - before == size - had


def set_hot_add(balloon, guest, value):
    guest.write("/sys/module/hv_balloon/parameters/hot_add", value)
    balloon.unbind()
    balloon.bind()


def test_resize_01_hot_add_to_the_double(balloon, guest):
    change(balloon, guest, MAX)
    assert can_use_its_memory(guest)


def test_resize_02_hot_remove_to_the_half(balloon, guest):
    change(balloon, guest, MAX, BOOT)
    assert can_use_its_memory(guest)


def test_resize_03_adding_blocks_one_by_one(balloon, guest):
    change(balloon, guest, *(BOOT + n * BLOCK for n in (1, 2, 3, 4)))
    assert can_use_its_memory(guest)


def test_resize_04_removing_as_much_one_by_one(balloon, guest):
    change(balloon, guest, MAX, *(MAX - n * BLOCK for n in (1, 2, 3, 4)))
    assert can_use_its_memory(guest)


def test_resize_05_adding_what_is_no_block(balloon, guest):
    change(balloon, guest, *(BOOT + n * 100 * MIB for n in (1, 2, 3, 4)))
    assert can_use_its_memory(guest)


def test_resize_06_removing_what_is_no_block(balloon, guest):
    change(balloon, guest, MAX, *(MAX - n * 100 * MIB for n in (1, 2, 3, 4)))
    assert can_use_its_memory(guest)


def test_resize_07_adding_and_removing_many_times(balloon, guest):
    change(balloon, guest, *(BOOT + 200 * MIB, BOOT - 40 * MIB) * 4, BOOT)
    assert can_use_its_memory(guest)


def test_resize_08_removing_under_load(balloon, guest):
    assert balloon.resize(MAX).reached
    guest.sh(
        "while sleep 0.2; do dd if=/dev/zero of=/dev/null bs=64M count=1; done >/dev/null 2>&1 & echo $! >/tmp/load"
    )
    assert balloon.resize("400M").reached
    guest.sh("kill $(cat /tmp/load); sleep 1")
    assert can_use_its_memory(guest)


def test_resize_09_added_memory_is_gone_after_a_reboot(vm, balloon, guest):
    before = guest.memory_total
    change(balloon, guest, MAX)
    balloon.device.keep_target = False
    lives = vm.machine.resets
    guest.sh("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")
    vm.until(lambda: vm.machine.resets > lives and vm.machine.agent.ready and balloon.ready, 90, "the guest again")
    assert guest.memory_total == before
    change(balloon, guest, BOOT + BLOCK)


def test_a_hot_add_that_the_guest_refuses_changes_nothing(vm, balloon, guest):
    before = guest.memory_total
    set_hot_add(balloon, guest, "0")  # read when the driver is bound
    outcome = balloon.resize(MAX)
    assert (outcome.reached, outcome.reason) == (False, GUEST_REFUSED)
    assert guest.memory_total == before
    set_hot_add(balloon, guest, "1")  # the first target is tried again at once
    assert balloon.resize(BOOT + BLOCK).reached
    assert guest.memory_total == before + BLOCK


def test_a_hot_add_without_a_driver_waits_for_it(vm, balloon, guest):
    balloon.unbind()
    balloon.set(BOOT + BLOCK)
    vm.run_for(1)
    assert balloon.actual == BOOT
    before = guest.memory_total
    balloon.bind()
    vm.until(lambda: balloon.actual == BOOT + BLOCK, 30, "memory for the driver that came")
    assert guest.memory_total == before + BLOCK
