"""LISA's eight cases of dynamic memory (lisa/microsoft/testsuites/hyperv/dynamic_memory.py), with one scripted host.

LISA waits for Hyper-V to react to pressure of other guests. Here the host acts at once, or by the guest's reports.
"""

from __future__ import annotations

import pytest

MIB = 1 << 20
BOOT, MAX = 512 * MIB, 1024 * MIB
GROWS = "512M,max=1G"
BY_DEMAND = "384M,min=224M,max=768M"
REPORTS = "hv_balloon.pressure_report_delay=2"

by_hand = pytest.mark.pyvmm(memory=GROWS)
by_demand = pytest.mark.pyvmm(memory=BY_DEMAND, append=REPORTS)


def occupy(guest, mib, place="/mnt"):
    """Fill a file system in the guest's memory."""
    guest.sh(f"mkdir -p {place}; mount -t tmpfs -o size={mib}M need {place}")
    guest.sh(f"dd if=/dev/zero of={place}/f bs=1M count={mib}")


def huge_pages_used(guest, mib):
    """Return how much of a buffer of `mib` MiB the guest has in huge pages while a process uses it, in MiB."""
    guest.sh("echo always >/sys/kernel/mm/transparent_hugepage/enabled")
    guest.sh(f"dd if=/dev/zero of=/dev/null bs={mib}M count=1000 >/dev/null 2>&1 & echo $! >/tmp/pid")
    used = guest.sh(
        "most=0; still=0; while [ $still -lt 8 ]; do sleep 0.3; set -- $(grep AnonHugePages /proc/meminfo);"
        " still=$((still + 1)); [ $2 -gt $most ] && most=$2 && still=0; done; kill $(cat /tmp/pid); echo $most"
    )
    return int(used) // 1024


def let_grow(vm, balloon, had):
    """Wait until the guest has got more than `had`, and its size rests: reports come each second."""
    vm.until(lambda: balloon.actual > had or balloon.actual == 768 * MIB, 30, "growth")
    before = had
    while balloon.actual not in (before, 768 * MIB):
        before = balloon.actual
        vm.run_for(2.2)


def has_no_complaint(guest):
    return not guest.dmesg("hot_add memory failed|Call Trace|Out of memory|BUG:|WARNING:")


@by_demand
def test_hot_add_when_the_guest_needs_memory(vm, balloon, guest):
    occupy(guest, 240)
    vm.until(lambda: balloon.actual > 400 * MIB, 60, "growth past the boot size")
    for _ in range(10):  # Linux brings the blocks online a moment later
        if guest.memory_total > 384 * MIB:
            break
        vm.run_for(1)
    assert guest.memory_total > 384 * MIB
    assert has_no_complaint(guest)


@by_hand
def test_huge_pages_are_made_of_hot_added_memory(balloon, guest):
    balloon.resize(MAX)
    assert huge_pages_used(guest, 600) > 500, "more than the guest had at boot"


@by_demand
def test_the_upper_limit_holds_under_pressure(vm, balloon, guest):
    sizes = []
    balloon.device.on_finish.append(lambda outcome: sizes.append(outcome.actual))
    for step, mib in enumerate((240, 45, 55, 65, 75, 85)):  # each fits into the buffer that the one before got
        had = balloon.actual
        occupy(guest, mib, f"/need{step}")
        let_grow(vm, balloon, had)
    vm.until(lambda: balloon.actual == 768 * MIB, 20, "the most")
    vm.run_for(4)
    assert max(sizes) == balloon.actual == 768 * MIB
    assert has_no_complaint(guest)


@by_demand
def test_the_upper_limit_holds_under_pressure_by_huge_pages(vm, balloon, guest):
    guest.sh("echo always >/sys/kernel/mm/transparent_hugepage/enabled; echo 1 >/proc/sys/vm/overcommit_memory")
    for mib in (240, 45, 55, 65, 75, 85):  # each fits into the buffer that the one before got
        had = balloon.actual
        guest.sh(f"dd if=/dev/zero of=/dev/null bs={mib}M count=100000 >/dev/null 2>&1 & true")
        let_grow(vm, balloon, had)
    vm.until(lambda: balloon.actual == 768 * MIB, 20, "the most")
    vm.run_for(3)
    assert balloon.actual == 768 * MIB
    assert int(guest.sh("grep AnonHugePages /proc/meminfo").split()[1]) > 400 * 1024


@by_hand
def test_balloon_up_takes_what_the_host_needs(balloon, guest):
    before = guest.memory_total
    assert balloon.resize("320M").reached
    assert guest.memory_total == before - 192 * MIB
    assert has_no_complaint(guest)


@by_hand
def test_the_lower_limit_is_the_guests_floor(balloon, guest):
    outcome = balloon.resize("16M")
    assert 64 * MIB < outcome.actual < 400 * MIB
    assert "floor" in outcome.reason
    assert int(guest.sh("grep MemAvailable /proc/meminfo").split()[1]) > 0
    assert has_no_complaint(guest)


@by_demand
def test_balloon_down_when_the_guest_needs_memory_again(vm, balloon, guest):
    vm.machine.monitor.set_autosize(False)
    assert balloon.resize("256M").reached
    vm.machine.monitor.set_autosize(True)
    occupy(guest, 160)
    vm.until(lambda: balloon.actual > 260 * MIB, 60, "memory back")
    assert has_no_complaint(guest)


@by_hand
def test_huge_pages_are_made_of_memory_that_came_back(balloon, guest):
    assert balloon.resize("200M").reached
    assert balloon.resize(BOOT).reached
    assert huge_pages_used(guest, 320) > 240
