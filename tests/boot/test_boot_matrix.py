"""Stock Debian guests on both engines, with one and two vCPUs: what they see, and memory out and back.

Each combination boots once; its tests run in the order of this file and leave the guest as they found it, but for
the last two, which reboot it and power it off.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.testbed.balloon import BALLOON_ID
from tests.support.booted import MIB, Booted

WHOLE = [
    (image, engine, cpus)
    for image in ("debian-6.1", "debian-6.12")
    for engine in ("kernel", "user")
    for cpus in (1, 2)
]
MORE = [
    ("debian-5.10", "kernel", 2),
    ("debian-5.10", "user", 1),
    ("debian-7.2", "kernel", 1),
    ("debian-7.2", "user", 2),
]
MATRIX = [
    pytest.param((image, engine, cpus), id=f"{image}-{engine}-{cpus}cpu") for image, engine, cpus in WHOLE + MORE
]
VMBUS = {"debian-5.10": "5.2"}  # what others agree on is 5.3
BOOT = 512 * MIB
SMALL = 256 * MIB
PATTERN = 32  # MiB of data that must survive
DIRTIED = 160  # MiB written and freed again, on each of two tmpfs (one holds half of RAM at most)
WRITE_LIMIT = 150.0  # seconds to write all that on a busy machine; a few on an idle one
LEAST_FALL = 96 * MIB  # of the host's resident memory: what was dirtied, less what the guest may keep


@pytest.fixture(scope="module", params=MATRIX)
def guest(request: pytest.FixtureRequest) -> Iterator[Booted]:
    image, engine, cpus = request.param
    with Booted(image, engine=engine, cpus=cpus, memory=BOOT) as booted:
        yield booted


def test_linux_finds_hyper_v_and_its_bus_and_balloon(guest: Booted) -> None:
    guest.wait_balloon_ready()
    log = guest.log("Hypervisor detected|Vmbus version|Dynamic Memory protocol")
    assert "Hypervisor detected: Microsoft Hyper-V" in log
    assert f"Vmbus version:{VMBUS.get(guest.image.name, '5.3')}" in log
    assert "Using Dynamic Memory protocol version 2.0" in log


def test_the_asked_for_engine_runs_with_all_cpus(guest: Booted) -> None:
    assert guest.machine.engine.name == guest.config.engine
    assert int(guest.sh("nproc")) == guest.config.cpus


def test_the_clock_is_hyper_v_s_page(guest: Booted) -> None:
    clocks = "/sys/devices/system/clocksource/clocksource0"
    current, available = guest.sh(f"cat {clocks}/current_clocksource {clocks}/available_clocksource").splitlines()
    assert "hyperv_clocksource_tsc_page" in available.split()
    assert current in ("hyperv_clocksource_tsc_page", "tsc")  # tsc where the host says that it is invariant


def test_every_offered_device_is_on_the_bus_and_has_its_driver(guest: Booted) -> None:
    offered = {device["guid"] for device in guest.machine.monitor.info_vmbus()}
    assert set(guest.sh("ls /sys/bus/vmbus/devices").split()) == offered
    guest.until(
        lambda: all(device["state"] == "open" for device in guest.machine.monitor.info_vmbus()),
        30,
        "all channels open",
    )


def most_free(guest: Booted) -> int:
    """Bytes of MemFree, the most of some readings: while Linux reports free pages it takes 32 of them, up to 128 MiB,
    out of its free lists.
    """
    read = "for i in 1 2 3 4 5; do grep MemFree /proc/meminfo; sleep 0.1; done"
    return max(int(line.split()[1]) for line in guest.sh(read).splitlines()) << 10


def test_memory_goes_out_and_back_and_both_sides_agree_to_the_page(guest: Booted) -> None:
    before, free_before = guest.guest.meminfo(), most_free(guest)
    out = guest.balloon.resize(SMALL)
    during, free_during = guest.guest.meminfo(), most_free(guest)
    taken = BOOT - out.actual
    assert out.reached, out.reason
    assert out.actual == SMALL
    assert before["MemTotal"] - during["MemTotal"] == guest.missing(taken)
    assert abs(free_before - free_during - taken) < 24 * MIB
    info = guest.machine.balloon.info()
    assert (info["actual"], info["removed-guest"], info["removed-both"]) == (SMALL, 0, taken)
    assert not any(info["refused-pages"].values()), info["refused-pages"]
    back = guest.balloon.resize(BOOT)
    after = guest.guest.meminfo()
    assert back.actual == BOOT
    assert after["MemTotal"] == before["MemTotal"]
    assert abs(most_free(guest) - free_before) < 24 * MIB


def test_ballooned_memory_leaves_the_host_and_data_survives(guest: Booted) -> None:
    # urandom would take half a minute under emulation; modules and busybox are as good against a mixed-up page
    write = (
        f"cd /tmp; cat /lib/modules/*.ko /bin/busybox >seed; "
        f"while [ $(stat -c %s p 2>/dev/null || echo 0) -lt {PATTERN * MIB} ]; do cat seed >>p; done; md5sum p >sum; "
        f"for f in /tmp/fill /run/fill; do dd if=/dev/zero of=$f bs=1M count={DIRTIED} 2>/dev/null; done; rm seed"
    )
    try:
        guest.sh(write, limit=WRITE_LIMIT)
        full = guest.machine.monitor.resident()  # before the guest may report free pages
        guest.sh("rm /tmp/fill /run/fill")
        assert guest.balloon.resize(SMALL).reached
        thin = guest.machine.monitor.resident()
        assert full - thin > LEAST_FALL
        assert guest.balloon.resize(BOOT).reached
        guest.sh("cd /tmp; md5sum -c sum")
    finally:
        guest.sh("rm -f /tmp/fill /run/fill /tmp/seed /tmp/p /tmp/sum")  # else the tests after this lack memory


def test_the_balloon_works_from_every_cpu(guest: Booted) -> None:
    """Writing the channel's `cpu` makes Linux send MODIFYCHANNEL."""
    for vp in (*range(guest.config.cpus), 0):
        guest.sh(f"for f in /sys/bus/vmbus/devices/{BALLOON_ID}/channels/*/cpu; do echo {vp} >$f; done")
        guest.until(lambda vp=vp: guest.vmbus.device("hv-balloon")["target-vp"] == vp, 20, f"channel on VP {vp}")
        assert guest.balloon.resize(BOOT - 32 * MIB).reached
        assert guest.balloon.resize(BOOT).reached


def test_the_driver_can_be_unbound_and_bound_again(guest: Booted) -> None:
    guest.balloon.unbind()
    guest.balloon.bind()
    total = guest.guest.memory_total
    assert guest.balloon.resize(BOOT - 64 * MIB).reached
    assert guest.guest.memory_total == total - guest.missing(64 * MIB)
    assert guest.balloon.resize(BOOT).reached


def test_the_balloon_keeps_its_target_over_three_reboots(guest: Booted) -> None:
    target = BOOT - 128 * MIB
    total = guest.guest.memory_total
    assert guest.balloon.resize(target).reached
    for _ in range(3):
        known = len(guest.balloon.outcomes)
        with guest.expect_reset():
            guest.send("reboot")
        guest.until(lambda known=known: len(guest.balloon.outcomes) > known, 30, "target applied again")
        assert guest.balloon.outcomes[-1].actual == target, guest.balloon.outcomes[-1]
        assert guest.guest.memory_total == total - guest.missing(128 * MIB)


def test_a_powerdown_request_ends_in_power_off(guest: Booted) -> None:
    guest.machine.powerdown()
    assert guest.wait_end().kind == "poweroff"
