"""What a guest's bus and the machine go through besides booting: drivers removed, older versions, a crash."""

from __future__ import annotations

import pytest

from pyvmm.images.catalog import find_image
from tests.support.booted import BOOT_LIMIT, MIB, Booted
from tests.support.kexec import kexec_initrd

ENGINES = pytest.mark.parametrize("engine", ["kernel", "user"])


@ENGINES
def test_the_bus_driver_can_be_removed_and_loaded_again(engine: str) -> None:
    # hv_balloon has no module exit and would pin hv_vmbus
    with Booted(engine=engine, append="module_blacklist=hv_balloon") as guest:
        services = ("heartbeat", "shutdown", "timesync")

        def all_open() -> bool:
            return all(guest.vmbus.device(name)["state"] == "open" for name in services)

        guest.until(all_open, 30, "services open")
        guest.sh("rmmod hv_utils; rmmod hv_vmbus")
        guest.until(lambda: guest.machine.services.bus.version is None, 20, "disconnected bus")
        assert not any(guest.vmbus.device(name)["state"] == "open" for name in services)
        guest.sh("insmod /lib/modules/hv_vmbus.ko; insmod /lib/modules/hv_utils.ko")
        guest.until(all_open, 30, "services open again")


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
@ENGINES
def test_a_kernel_started_by_kexec_finds_the_bus_as_new_and_all_boot_memory(engine: str, image: str) -> None:
    initrd = kexec_initrd(find_image(image, build=False), build=False)
    with Booted(image, engine=engine, cpus=2, memory=640 * MIB, initrd=initrd) as guest:
        guest.wait_balloon_ready()
        total = guest.guest.memory_total
        assert guest.balloon.resize(512 * MIB).reached
        guest.sh("kexec -s -l /boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline")
        known, ended = len(guest.balloon.outcomes), []
        guest.machine.agent.execute("kexec -e", lambda stream, data: None, ended.append)
        guest.until(lambda: ended, BOOT_LIMIT, "word from the new kernel's agent")
        assert (ended, guest.machine.resets) == ([None], 0), "it began anew without a reset"
        guest.until(lambda: len(guest.balloon.outcomes) > known, 30, "target applied again")
        assert guest.balloon.outcomes[-1].actual == 512 * MIB
        assert guest.balloon.resize(640 * MIB).reached
        assert abs(guest.guest.memory_total - total) < 2 * MIB, "what its predecessor let go of is the new kernel's"


@ENGINES
def test_the_cmos_clock_s_alarm_rings_and_wakes_a_suspended_guest(engine: str) -> None:
    with Booted(engine=engine, cpus=2) as guest:
        guest.sh("echo +2 >/sys/class/rtc/rtc0/wakealarm")
        assert guest.sh("cat /sys/class/rtc/rtc0/wakealarm").strip(), "it is set"
        guest.until(lambda: not guest.sh("cat /sys/class/rtc/rtc0/wakealarm").strip(), 15, "alarm gone off")
        line = guest.sh("grep rtc0 /proc/interrupts").split()
        assert line[0] == "8:"
        assert int(line[1]) + int(line[2]) >= 1
        slept = guest.sh(
            "cut -d. -f1 /proc/uptime; echo +3 >/sys/class/rtc/rtc0/wakealarm; echo freeze >/sys/power/state"
        )
        assert int(guest.sh("cut -d. -f1 /proc/uptime")) - int(slept) >= 2
        guest.wait_balloon_ready()
        assert guest.balloon.resize(256 * MIB).reached, "the bus works on"


@ENGINES
def test_a_crash_ends_the_machine_with_the_panic_s_text_and_no_console(engine: str) -> None:
    with Booted(engine=engine, console=False) as guest:
        guest.send("echo c >/proc/sysrq-trigger")
        outcome = guest.wait_end()
        assert outcome.kind == "panic"
        assert "sysrq triggered crash" in outcome.text
        assert outcome.crash is not None
        assert "Call Trace" in outcome.crash.text
        assert guest.console.text == ""
        assert "GUEST_PANICKED" in [name for name, _ in guest.events]


def test_an_older_bus_version_is_agreed_on_and_the_balloon_works() -> None:
    """Linux before 5.3's connection ids asks on another connection, without a message one."""
    with Booted(engine="user", max_vmbus=0x00040000) as guest:
        guest.wait_balloon_ready()
        assert "Vmbus version:4.0" in guest.log("Vmbus version")
        assert guest.balloon.resize(448 * MIB).reached
        assert guest.balloon.resize(512 * MIB).reached


def test_a_reset_by_the_host_in_the_middle_of_a_resize_starts_anew() -> None:
    with Booted(engine="user", cpus=2) as guest:
        guest.wait_balloon_ready()
        guest.machine.monitor.balloon_set(256 * MIB)
        guest.until(lambda: guest.machine.balloon.actual < 512 * MIB, 20, "first pages out")
        known = len(guest.balloon.outcomes)
        with guest.expect_reset():
            guest.machine.reset()
        guest.until(
            lambda: len(guest.balloon.outcomes) > known and guest.balloon.outcomes[-1].reached,
            40,
            "target applied again",
        )
        assert guest.machine.balloon.actual == 256 * MIB


def test_a_paused_guest_stands_still_and_goes_on() -> None:
    with Booted(engine="kernel", cpus=2) as guest:
        guest.machine.pause()
        done: list[int | None] = []
        guest.machine.agent.execute("true", lambda stream, data: None, done.append)
        guest.run_for(1.0)
        assert not done
        guest.machine.resume()
        guest.until(lambda: done, 30, "end of a command given while paused")
        assert done == [0]
