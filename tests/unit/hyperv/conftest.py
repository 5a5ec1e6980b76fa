"""What stands around an engine in these tests: RAM, a loop whose work runs when told, a VM, a vCPU."""

from __future__ import annotations

import pytest

from pyvmm.memory import GuestMemory
from tests.support.fake_kvm import FakeLoop, FakeVcpu, FakeVm


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.flat(0x20000)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def vcpu() -> FakeVcpu:
    return FakeVcpu()
