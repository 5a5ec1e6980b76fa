"""LIS-Test's cases of runtime memory, Resize-01 to Resize-09, and of a hot add that fails."""

from __future__ import annotations

import pytest

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
    guest.sh("while :; do dd if=/dev/zero of=/dev/null bs=120M count=1 2>/dev/null; done & echo $! >/tmp/load")
    assert balloon.resize("400M").reached
    guest.sh("kill $(cat /tmp/load); sleep 1")
    assert can_use_its_memory(guest)


def test_resize_09_added_memory_is_gone_after_a_reboot(vm, balloon, guest):
    before = guest.memory_total
    change(balloon, guest, MAX)
    vm.machine.config.keep_target = False
    lives = vm.machine.resets
    vm.machine.agent.execute("reboot -f", lambda stream, data: None, lambda status: None)
    vm.until(lambda: vm.machine.resets > lives and vm.machine.agent.ready and balloon.ready, 90, "the guest again")
    assert guest.memory_total == before
    change(balloon, guest, BOOT + BLOCK)


def test_a_hot_add_that_the_guest_refuses_changes_nothing(vm, balloon, guest):
    before = guest.memory_total
    guest.write("/sys/module/hv_balloon/parameters/hot_add", "0")
    outcome = balloon.resize(MAX)
    assert not outcome.reached
    assert guest.memory_total == before
    guest.write("/sys/module/hv_balloon/parameters/hot_add", "1")
    balloon.unbind()
    balloon.bind()
    change(balloon, guest, BOOT + BLOCK)


def test_a_hot_add_without_a_driver_waits_for_it(vm, balloon, guest):
    balloon.unbind()
    balloon.set(BOOT + BLOCK)
    vm.run_for(1)
    assert balloon.actual == BOOT
    before = guest.memory_total
    balloon.bind()
    vm.until(lambda: balloon.actual == BOOT + BLOCK, 30, "memory for the driver that came")
    assert guest.memory_total == before + BLOCK
