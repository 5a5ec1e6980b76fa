"""Enlightenments that a tiny kernel uses in a whole machine: IPI calls, the APIC's MSRs, run time, reenlightenment.

The user engine's anywhere, KVM's own where it has them.
"""

from __future__ import annotations

import time
from pathlib import Path
from struct import unpack

import pytest

from pyvmm.hyperv import kernel as kernel_engine
from pyvmm.kvm import Kvm
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.engines import missing
from pyvmm.machine.machine import Machine
from tests.support.tiny_kernel import vmlinux

pytestmark = pytest.mark.kvm

# A gate for vector 0x40; x2APIC on; wrmsr each of a table: SVR, GUEST_OS_ID, HYPERCALL, REENLIGHTENMENT_CONTROL,
# TSC_EMULATION_CONTROL, HV's TPR. Then thrice: HvCallSendSyntheticClusterIpi(0x40, itself) through the page, its
# status to RESULT; sti; hlt; the handler counts at RESULT + 8 and writes HV's EOI. At last it reads VP_RUNTIME,
# REENLIGHTENMENT_CONTROL, TSC_EMULATION_CONTROL, TPR and VP_RUNTIME to RESULT + 16, and sets RESULT + 12.
CODE = bytes.fromhex(
    "fabc0000 6000488d 05880000 00bf0004 70006689 078c4f02 66c74704 008e48c1"
    "e8108947 06c7470a 00000000 bf00f06f 0066c707 ff0fc747 02000070 00c74706"
    "00000000 0f011fb9 1b000000 0f320d00 0c00000f 30488d35 7c000000 8b0ee30d"
    "8b460431 d20f3048 83c608eb efb90b00 0100ba40 00000041 b8010000 00b80000"
    "5000ffd0 bb000040 00488903 bc000060 00fbf4eb febb0000 4000ff43 08b97000"
    "004031c0 31d20f30 837b0803 72bf488d 35570000 00488d7b 108b0ee3 110f3289"
    "07895704 4883c604 4883c708 ebebc743 0c010000 00f4ebf6 0f080000 ff010000"
    "00000040 01000000 01000040 01005000 06010040 ee000100 07010040 01000000"
    "72000040 10000000 00000000 10000040 06010040 07010040 72000040 10000040"
    "00000000"
)
RESULT = 0x400000
IPIS = 3
LIMIT = 30.0


@pytest.mark.parametrize("engine", ["user", "kernel"])
def test_a_guest_uses_ipis_apic_registers_run_time_and_reenlightenment(tmp_path: Path, kvm: Kvm, engine: str) -> None:
    if engine == "kernel" and (lacks := missing(kvm, kernel_engine.NEEDED)):
        pytest.skip(f"this KVM lacks {lacks[0]}")
    path = tmp_path / "kernel"
    path.write_bytes(vmlinux(CODE))
    config = MachineConfig(kernel=path, memory=64 << 20, engine=engine, enlightenments=("+all",))  # type: ignore[arg-type]
    machine = Machine(config, Loop())
    try:
        machine.start()
        limit = time.monotonic() + LIMIT
        while not machine.memory.read(RESULT + 12, 1)[0]:
            assert machine.outcome is None, machine.outcome
            assert time.monotonic() < limit, machine.memory.read(RESULT, 16)
            machine.loop.step(0.05)
        status, ipis, _, before, control, emulation, priority, after = unpack(
            "<QII5Q", machine.memory.read(RESULT, 56)
        )
    finally:
        machine.close()
        machine.loop.close()
    assert (status, ipis) == (0, IPIS), "each was ended by HV's EOI, or the next would not have come"
    assert (control, emulation, priority) == (0x100EE, 1, 0x10)
    assert 0 < before <= after
