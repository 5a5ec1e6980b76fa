"""The guest of a test: it is booted, its devices answer, and what one test does to it no other sees."""

from __future__ import annotations

import pytest

MARK = "/tmp/a-test-was-here"


def test_the_guest_runs_the_kernel_of_its_configuration(vm, pyvmm_configuration):
    assert vm.run("uname -r").stdout.startswith(f"{pyvmm_configuration.kernel}.")


def test_the_balloon_takes_memory_and_gives_it_back(balloon, guest):
    before = guest.memory_total
    balloon.resize("256M")
    assert balloon.actual == 256 << 20
    balloon.resize("512M")
    assert guest.memory_total == before


@pytest.mark.parametrize("turn", ["first", "second"])
def test_no_test_finds_what_another_did(guest, balloon, turn):
    assert guest.sh(f"test -e {MARK} && echo found || true") == ""
    assert balloon.actual == 512 << 20
    guest.write(MARK, turn)
    balloon.resize("400M")


def test_the_driver_is_unbound_and_bound_again(balloon, vmbus):
    balloon.unbind()
    assert not balloon.ready
    balloon.bind()
    assert vmbus.device("hv-balloon")["state"] == "open"


def test_the_console_shows_what_the_kernel_says(guest, console):
    guest.write("/dev/kmsg", "<0>said by a test\n")  # a line without end waits for the next one
    assert console.expect(r"said by (a \w+)")[1] == "a test"


@pytest.mark.pyvmm(engine="user", cpus=2, vmbus="4.0", protocol="2.0")
def test_the_marker_chooses_engine_cpus_and_protocols(vm, vmbus, guest):
    assert vm.config.engine == "user"
    assert guest.sh("nproc") == "2"
    assert vmbus.version == (4, 0)
