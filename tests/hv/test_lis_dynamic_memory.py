"""LIS-Test's cases of dynamic memory, DM-01 to DM-18, as far as they make sense with one host.

Not here: DM-06 and DM-07 need two guests that compete (tests/boot/test_balance_guests.py), DM-09 tests Hyper-V's
weights.
"""

from __future__ import annotations

import os

import pytest

from pyvmm.devices.balloon.growth import LEFT_OFFLINE
from pyvmm.testbed.template import Template

MIB = 1 << 20
BOOT, MAX = 512 * MIB, 1024 * MIB
GROWS = "512M,max=1G"
BLOCK = 128 * MIB

STATES = "/sys/devices/system/memory/memory*/state"
ONLINE = f"for m in {STATES}; do read s <$m; [ $s != offline ] || echo online >$m; done"
"""Without a process for each block: Linux waits for five seconds only."""

WRITES = "while sleep 0.1; do dd if=/dev/zero of=/tmp/w bs=1M count=64; done >/dev/null 2>&1 & echo $! >/tmp/writer"

pytestmark = pytest.mark.pyvmm(memory=GROWS)


def fill_with_pattern(guest, mib):
    """Write files of known contents into the guest's memory, which `pattern_holds` checks."""
    guest.sh(
        "mkdir -p /mnt; mount -t tmpfs -o size=95% need /mnt; cd /mnt;"
        " for n in 1 2 3 4 5 6 7 8; do cat /lib/modules/*.ko /bin/busybox; done | head -c 8M >p;"
        f" n=1; while [ $n -lt {mib // 8} ]; do cp p p$n; n=$((n+1)); done",
        timeout=120,
    )


def pattern_holds(guest):
    guest.sh("cd /mnt; for f in p?*; do cmp p $f || exit 1; done", timeout=120)
    return True


def pressure(guest, mib):
    guest.sh(f"mkdir -p /need; mount -t tmpfs -o size=95% need /need; dd if=/dev/zero of=/need/f bs=1M count={mib}")


def relax(guest):
    guest.sh("umount /need")


def complaints(guest):
    return guest.dmesg("hot_add memory failed|Call Trace|BUG:|WARNING:|Bad page")


def test_dm_01_the_module_is_there_and_cannot_be_removed(vm, balloon, guest):
    assert guest.sh("ls -d /sys/module/hv_balloon")
    if guest.sh("grep -c '^hv_balloon ' /proc/modules || true") == "1":
        assert vm.run("rmmod hv_balloon").status != 0
    balloon.unbind()
    balloon.bind()
    assert balloon.resize("400M").reached


def test_dm_02_memory_is_onlined_by_the_kernel_itself(balloon, guest):
    before = guest.memory_total
    guest.write("/sys/devices/system/memory/auto_online_blocks", "online")
    assert balloon.resize(BOOT + BLOCK).reached
    assert guest.memory_total == before + BLOCK


def test_dm_02_memory_that_nothing_onlines_waits_for_its_administrator(balloon, guest):
    before = guest.memory_total
    guest.write("/sys/devices/system/memory/auto_online_blocks", "offline")
    assert balloon.resize(BOOT + BLOCK).reason == LEFT_OFFLINE
    assert guest.memory_total == before
    guest.sh(f"{ONLINE}; true")
    assert guest.memory_total == before + BLOCK


def test_dm_02_memory_is_onlined_by_a_rule_in_the_guest(balloon, guest):
    before = guest.memory_total
    guest.write("/sys/devices/system/memory/auto_online_blocks", "offline")
    guest.sh(f"(while sleep 0.1; do {ONLINE}; done) >/dev/null 2>&1 & echo $! >/tmp/udev")
    assert balloon.resize(BOOT + 2 * BLOCK).reached
    guest.sh(f"while grep -q offline {STATES}; do sleep 0.1; done; kill $(cat /tmp/udev)")
    assert guest.memory_total == before + 2 * BLOCK


def test_dm_03_added_memory_holds_what_is_written(balloon, guest):
    assert balloon.resize(MAX).reached
    fill_with_pattern(guest, 500)
    assert pattern_holds(guest)
    assert not complaints(guest)


def test_dm_04_memory_is_added_while_the_guest_writes(balloon, guest):
    guest.sh(WRITES)
    for size in range(BOOT + BLOCK, MAX + 1, BLOCK):
        assert balloon.resize(size).reached
    guest.sh("kill $(cat /tmp/writer)")
    assert not complaints(guest)


def test_dm_05_memory_is_taken_while_the_guest_writes(balloon, guest):
    guest.sh(WRITES)
    assert balloon.resize("384M").reached
    guest.sh("kill $(cat /tmp/writer)")
    assert not complaints(guest)


def test_dm_16_memory_is_taken_and_given_back_under_pressure_three_times(balloon, guest):
    before = guest.memory_total
    for _ in range(3):
        assert balloon.resize("320M").reached
        pressure(guest, 64)
        assert balloon.resize(BOOT).reached
        relax(guest)
    assert guest.memory_total == before
    assert not complaints(guest)


@pytest.mark.pyvmm(memory="384M,min=224M,max=768M", append="hv_balloon.pressure_report_delay=2")
def test_dm_08_the_demand_reported_follows_the_guests(vm, balloon, guest):
    device = balloon.device
    vm.machine.monitor.set_autosize(False)
    vm.until(lambda: device.last_status is not None, 20, "a report")

    def committed(change):
        guest.sh(change)
        told = device.last_status
        vm.until(lambda: device.last_status is not told, 10, "the next report")
        told = device.last_status
        vm.until(lambda: device.last_status is not told, 10, "the one after")
        words = guest.sh("grep Committed_AS /proc/meminfo").split()
        return device.last_status.committed_pages * 4 // 1024, int(words[1]) // 1024

    low, low_guest = committed("true")
    high, high_guest = committed(
        "mkdir -p /need; mount -t tmpfs need /need; dd if=/dev/zero of=/need/f bs=1M count=100"
    )
    down, down_guest = committed("umount /need")
    assert high - low == pytest.approx(high_guest - low_guest, abs=8)
    assert 90 < high - low < 130
    assert down - low == pytest.approx(down_guest - low_guest, abs=8)


def test_dm_10_and_11_neither_limit_is_crossed(vm, balloon):
    sizes = []
    balloon.device.on_finish.append(lambda outcome: sizes.append(outcome.actual))
    for size in ("2G", "32M", "1500M", "1M"):
        balloon.resize(size)
    assert max(sizes) == MAX
    assert min(sizes) > 64 * MIB
    assert vm.run("true").status == 0


def test_dm_12_a_guest_saved_with_memory_out_goes_on_where_it_was(vm, balloon, guest):
    assert balloon.resize("300M").reached
    total = guest.memory_total
    shown, tell = os.pipe()
    with Template(vm) as template:

        def go_on(vm):
            same = vm.guest.memory_total == total
            back = vm.balloon.resize(BOOT).reached
            os.write(tell, f"{same} {back} {vm.guest.memory_total - total}".encode())

        for _ in range(2):
            assert template.fork(go_on).wait(100) == 0
            assert os.read(shown, 100).decode() == f"True True {BOOT - 300 * MIB}"


def test_dm_13_a_guest_with_memory_out_powers_off(vm, balloon):
    assert balloon.resize("256M").reached
    vm.machine.powerdown()
    vm.until(lambda: vm.ended, 30, "end")
    assert vm.machine.outcome.kind == "poweroff"


@pytest.mark.parametrize("step", [BLOCK, 2 * BLOCK], ids=["block", "two-blocks"])
def test_dm_14_and_15_requests_that_follow_at_once(vm, balloon, guest, step):
    for size in range(BOOT + step, MAX + 1, step):
        balloon.set(size)
        vm.run_for(0.05)
    vm.until(lambda: balloon.actual == MAX, 60, "the most")
    assert not complaints(guest)


def test_dm_16_a_guest_short_of_memory_kills_the_hog_and_not_the_driver(vm, balloon, guest):
    assert balloon.resize("256M").reached
    guest.sh("echo 1 >/proc/sys/vm/overcommit_memory")
    vm.run("dd if=/dev/zero of=/dev/null bs=600M count=1")
    assert guest.dmesg("Out of memory: Killed process .*dd")
    assert balloon.resize(MAX).reached
    assert vm.run("dd if=/dev/zero of=/dev/null bs=600M count=1").status == 0


def test_dm_18_an_idle_driver_costs_no_load(vm, guest):
    pid = guest.sh("grep -lx hv_balloon /proc/[0-9]*/comm | head -1").split("/")[2]
    states = set()
    for _ in range(8):
        vm.run_for(0.5)
        states.add(guest.sh(f"cut -d' ' -f3 /proc/{pid}/stat"))
    assert states <= {"S", "I"}
