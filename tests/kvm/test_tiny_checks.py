"""The self-test's checks of KVM, on any /dev/kvm."""

from __future__ import annotations

import pytest

from pyvmm.kvm import Kvm
from pyvmm.selftest.kvm_checks import exits, msr_exits, state, tsc

pytestmark = pytest.mark.kvm


def test_a_port_read_is_timed(kvm: Kvm) -> None:
    assert float(exits(kvm).figures["exit-us"]) > 0


def test_msrs_exit_with_their_reasons(kvm: Kvm) -> None:
    assert msr_exits(kvm).detail.startswith("filtered and unknown MSRs exit (FILTER, ")


def test_the_tsc_s_frequency_is_reported(kvm: Kvm) -> None:
    assert int(tsc(kvm).figures["tsc-khz"]) > 1000


def test_register_state_is_read_and_written_back(kvm: Kvm) -> None:
    assert int(state(kvm).figures["xsave-bytes"]) >= 4096
