"""Enlightenments by choice: Linux uses each, and its clock events come from the timers."""

from __future__ import annotations

import re

import pytest

from tests.support.booted import Booted

CLOCK_EVENT = "/sys/devices/system/clockevents/clockevent0/current_device"
SAID = {
    "kernel": (
        "Using hypercall for remote TLB flush",
        "Using IPI hypercalls",
        "Using enlightened APIC (x2apic mode)",
    ),
    "user": ("Using IPI hypercalls", "Using enlightened APIC (x2apic mode)"),
}


def timer_interrupts(guest: Booted, line: str) -> list[int]:
    """The numbers of a line of /proc/interrupts, one a CPU."""
    text = guest.sh(f"grep {line}: /proc/interrupts")
    return [int(word) for word in re.findall(r" (\d+)(?= )", text.split("Hyper")[0].split("Local")[0])]


@pytest.mark.parametrize(("engine", "cpus"), [("kernel", 2), ("user", 1)])
def test_linux_uses_every_enlightenment_of_an_engine(engine: str, cpus: int) -> None:
    with Booted("debian-6.12", engine=engine, cpus=cpus, enlightenments=("+all",)) as guest:
        log = guest.log("Hyper-V:|TLB flush|WARNING|unchecked MSR")
        for line in SAID[engine]:
            assert line in log
        assert "WARNING" not in log
        assert "unchecked" not in log
        assert guest.sh(f"cat {CLOCK_EVENT}").strip() == "Hyper-V clockevent"
        before = timer_interrupts(guest, "HVS")
        guest.sh("sleep 0.2")
        after = timer_interrupts(guest, "HVS")
        assert len(after) == cpus
        assert all(new > old for old, new in zip(before, after, strict=True)), (before, after)
        assert sum(timer_interrupts(guest, "LOC")) == 0, "the local APIC's timer is not used"
        guest.wait_balloon_ready()
        assert guest.balloon.resize(256 << 20).reached


def test_linux_takes_timer_messages_and_vmbus_messages_from_one_slot() -> None:
    """The kernel engine, where KVM writes the one and pyvmm the other."""
    with Booted("debian-6.1", engine="kernel", cpus=2, enlightenments=("+stimer",)) as guest:
        guest.until(lambda: guest.sh(f"cat {CLOCK_EVENT}").strip() == "Hyper-V clockevent", 20, "timers of hv_vmbus")
        guest.wait_balloon_ready()
        assert guest.balloon.resize(256 << 20).reached
        with guest.expect_reset():
            guest.send("reboot -f")
        guest.wait_balloon_ready()
