"""A guest of the test bed: commands, console, balloon, driver unbound and bound, events, end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.testbed.vm import VM
from pyvmm.testbed.waits import GuestEnded, TimedOut

MIB = 1 << 20


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM("debian-6.1", memory="512M", engine="user") as made:
        yield made


def test_commands_files_and_log(vm: VM) -> None:
    assert vm.run("echo out; echo err >&2; exit 3").stdout == "out\n"
    vm.guest.write("/tmp/file", "it's $HOME")
    assert vm.guest.read("/tmp/file") == "it's $HOME"
    assert vm.guest.dmesg("Linux version")[0].count("Linux version") == 1
    assert vm.guest.meminfo()["MemTotal"] == vm.guest.memory_total
    assert vm.guest.uptime > 0
    with pytest.raises(TimedOut, match=r"not within .* s: luck"):
        vm.until(lambda: False, 0.1, "luck")


def test_the_console_is_read_on(vm: VM) -> None:
    vm.guest.write("/dev/console", "one two\n")
    assert vm.console.expect(r"one (\w+)")[1] == "two"
    with pytest.raises(TimedOut, match=r"text like 'one \(.*it ends: "):
        vm.console.expect(r"one (\w+)", 0.2)


def test_the_balloon_is_resized_and_its_driver_bound_again(vm: VM) -> None:
    assert vm.balloon.resize("256M").actual == vm.balloon.actual == 256 * MIB
    assert vm.wait_event("X_BALLOON_FINISHED").data["actual"] == 256 * MIB
    vm.balloon.unbind()
    assert vm.vmbus.device("hv-balloon")["state"] != "open"
    vm.balloon.bind()
    assert vm.balloon.resize("512M").actual == 512 * MIB
    assert vm.vmbus.version == (5, 3)


def test_a_wait_fails_when_the_machine_ends(vm: VM) -> None:
    with pytest.raises(GuestEnded, match="poweroff"):
        vm.run("poweroff -f")
    assert vm.ended
