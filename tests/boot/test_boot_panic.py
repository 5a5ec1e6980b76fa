"""Guests that die: before they can speak, with a crash kernel loaded, and for want of memory."""

from __future__ import annotations

import pytest

from pyvmm.images.catalog import find_image
from tests.support.booted import BOOT_LIMIT, MIB, Booted
from tests.support.kexec import kexec_initrd

TOO_MANY = " ".join(map(str, range(1, 41)))  # words for init: Linux takes 32 and panics in start_kernel


@pytest.mark.parametrize(("engine", "image"), [("user", "debian-6.1"), ("kernel", "debian-6.12")])
def test_a_loaded_crash_kernel_runs_after_the_panic_and_the_panic_is_the_machines_end(
    engine: str, image: str
) -> None:
    initrd = kexec_initrd(find_image(image, build=False), build=False)
    with Booted(image, engine=engine, cpus=2, memory=768 * MIB, append="crashkernel=256M", initrd=initrd) as guest:
        guest.sh("kexec -s -p /boot/vmlinuz --initrd=/boot/initrd --reuse-cmdline --append=nr_cpus=1")
        assert guest.sh("cat /sys/kernel/kexec_crash_loaded") == "1\n"
        lost: list[int | None] = []
        guest.machine.agent.execute("echo c >/proc/sysrq-trigger", lambda stream, data: None, lost.append)
        guest.until(lambda: lost, BOOT_LIMIT, "word from the crash kernel's agent")
        assert (lost, guest.machine.resets) == ([None], 0), "it began anew without a reset"
        told = [name for name, _ in guest.events if name.startswith("GUEST_")]
        assert told == ["GUEST_PANICKED", "GUEST_CRASHLOADED"]
        assert guest.sh("head -c 4 /proc/vmcore") == "\x7fELF", "the memory of the kernel that panicked"
        guest.send("poweroff -f")
        outcome = guest.wait_end()
        assert outcome.kind == "panic"
        assert "sysrq triggered crash" in outcome.text


def test_a_panic_in_start_kernel_ends_the_machine_with_its_line() -> None:
    with Booted(append=TOO_MANY, wait=False) as guest:
        outcome = guest.wait_end()
        assert outcome.kind == "panic"
        assert outcome.text.startswith("Kernel panic - not syncing: Too many boot init vars")


def test_a_guest_that_resets_for_ever_before_it_speaks_is_ended() -> None:
    with Booted("debian-6.12", append=f"panic=-1 {TOO_MANY}", wait=False) as guest:
        outcome = guest.wait_end()
        assert outcome.kind == "panic"
        assert "reset itself 10 times in a row" in outcome.text
        assert "Too many boot init vars" in outcome.text
        assert len([name for name, _ in guest.events if name == "X_NOTICE"]) == 1


@pytest.mark.parametrize("image", ["debian-6.1", "debian-6.12"])
def test_out_of_memory_in_a_shrunken_guest_leaves_its_agent_alone(image: str) -> None:
    with Booted(image, memory=1024 * MIB) as guest:
        guest.wait_balloon_ready()
        guest.balloon.resize(200 * MIB)
        guest.sh("mkdir /big; mount -t tmpfs -o size=900m none /big")
        text = guest.sh("dd if=/dev/zero of=/big/x bs=1M count=600", check=False)
        assert "killed by signal 9: the guest has run out of memory" in text
        assert guest.balloon.resize(1024 * MIB).reached
        assert guest.sh("rm /big/x; echo well") == "well\n"
        assert guest.sh("cat /proc/[0-9]*/oom_score_adj | grep -c -e -1000 -e -999") != "0\n"


def test_an_agent_that_is_killed_comes_back() -> None:
    with Booted() as guest:
        lost: list[int | None] = []
        guest.machine.agent.execute("sleep 100", lambda stream, data: None, lost.append)
        guest.send("for p in /proc/[0-9]*; do grep -q ^/bin/sh./etc/pyvmm $p/cmdline && kill -9 ${p#/proc/}; done")
        guest.until(lambda: "".join(guest.trace.lines()).count("agent.ready") == 2, 30, "agent that came after")
        assert lost in ([None], [137]), "137 if what waited for the command was killed last"
        assert guest.sh("echo well") == "well\n"
