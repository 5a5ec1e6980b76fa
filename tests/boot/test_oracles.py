"""The oracles against Linux: silent about an honest host's guest, and each tripped by a planted fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.testbed.vm import VM
from pyvmm.testbed.waits import GuestEnded


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM("debian-6.1", memory="512M", engine="user") as made:
        made.oracles.begin()
        yield made


def test_the_log_oracle_finds_a_new_warning_once(vm: VM) -> None:
    vm.run("echo '<4>WARNING: planted' >/dev/kmsg")
    verdict = vm.survives(0.2)
    assert [each.line for each in verdict.findings] == ["warning: WARNING: planted"]
    assert vm.survives(0.2)


def test_the_panic_oracle_tells_the_panic(vm: VM) -> None:
    with pytest.raises(GuestEnded):
        vm.run("echo c >/proc/sysrq-trigger")
    (finding,) = vm.survives().findings
    assert str(finding) == "panic: Kernel panic - not syncing: sysrq triggered crash"
    assert "sysrq_handle_crash" in finding.details
