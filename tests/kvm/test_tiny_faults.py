"""Fault rules of a session with a tiny guest: in force before KVM makes a VM, and told of at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.faults import FaultSet
from pyvmm.kvm import Kvm
from pyvmm.launch.session import Session
from pyvmm.machine import MachineConfig
from tests.support.flooded import MEMORY, kernel

pytestmark = pytest.mark.kvm

PRINT_A = bytes.fromhex("66BAF803 B041 EE EBFE")  # mov dx, 0x3f8; mov al, 'A'; out dx, al; jmp $


@pytest.fixture
def config(kvm: Kvm, tmp_path: Path) -> MachineConfig:
    (tmp_path / "kernel").write_bytes(kernel(PRINT_A))
    return MachineConfig(kernel=tmp_path / "kernel", memory=MEMORY, entry="pvh")


def test_a_vcpu_that_kvm_refuses_ends_the_start_in_one_line(
    config: MachineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = pytest.raises(HostError, match=r"KVM_CREATE_VCPU\(id 0\) on vm failed: .*ENOMEM.*out of memory")
    with Session(replace(config, faults=("vcpu-refused",))) as session, refused:
        session.start()
    assert capsys.readouterr().err == ""


def test_memory_that_kvm_does_not_get_is_not_there_for_the_guest(config: MachineConfig) -> None:
    with Session(replace(config, faults=("memslot.out:drop,slot=0", "memslot.out:drop,slot=1"))) as session:
        session.start()
        outcome = session.machine.run()
    assert outcome.kind in ("error", "reset", "panic") or session.machine.resets


def test_rules_that_did_nothing_are_told_of_at_the_end(
    config: MachineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session(replace(config, faults=("eom-lost", "ioctl.out:pass,op=CREATE_VCPU"))) as session:
        session.start()
        session.machine.quit()
        session.machine.run()
        assert FaultSet.of(session.machine).hits("ioctl.out:pass,op=CREATE_VCPU") == 1
    assert capsys.readouterr().err == (
        "pyvmm: fault rule eom.in:drop of eom-lost was never hit: nothing crossed eom.in\n"
    )


def test_a_machine_without_rules_has_all_taps_off(config: MachineConfig) -> None:
    with Session(config) as session:
        session.start()
        machine = session.machine
        assert machine.taps.rules is None
        assert not any(machine.taps[name].on for name in machine.taps.NAMES)
        assert machine.monitor.fault_rules().info() == []


def test_the_monitor_adds_and_removes_rules(config: MachineConfig) -> None:
    with Session(config) as session:
        session.start()
        rules = session.machine.monitor.fault_rules()
        number = rules.add_text("eom-lost")
        assert session.machine.taps.eom.on
        assert [each["rule"] for each in rules.info()] == ["eom-lost"]
        rules.remove(number)
        assert not session.machine.taps.eom.on
        with pytest.raises(ConfigError, match="is no fault"):
            rules.add_text("nonsense")


def test_two_machines_have_rules_of_their_own(config: MachineConfig) -> None:
    with Session(replace(config, faults=("eom-lost",))) as first, Session(replace(config, name="two")) as second:
        assert first.machine.taps.eom.on and not second.machine.taps.eom.on
