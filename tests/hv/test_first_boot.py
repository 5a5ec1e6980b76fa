"""The guest of a test: it runs, and its devices answer."""

from __future__ import annotations


def test_the_guest_runs_the_kernel_of_its_configuration(vm, pyvmm_configuration):
    assert vm.run("uname -r").stdout.startswith(f"{pyvmm_configuration.kernel}.")


def test_the_balloon_takes_memory_and_gives_it_back(balloon, guest):
    before = guest.memory_total
    balloon.resize("256M")
    assert balloon.actual == 256 << 20
    assert guest.memory_total < before
    balloon.resize("512M")
    assert guest.memory_total == before
