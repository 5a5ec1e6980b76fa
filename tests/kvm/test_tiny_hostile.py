"""Hostile guests, each in a machine of its own, on any KVM and each engine it has: pyvmm serves, refuses and ends."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pyvmm.hyperv import kernel, user
from pyvmm.kvm import Kvm
from pyvmm.machine.engines import missing
from tests.support.flooded import Flooded
from tests.support.hostile import program

pytestmark = pytest.mark.kvm

SECONDS = float(os.environ.get("PYVMM_HOSTILE_SECONDS", "1.5"))
ANSWER_LIMIT = 0.5
SLACK = 6.0 if os.environ.get("PYVMM_INSIDE_HOST") else 2.0
"""How much slower a loaded test machine may be, or an emulated one."""


@pytest.mark.parametrize("engine", ["user", "kernel"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("PYVMM_HOSTILE_SEEDS", "2"))))
def test_a_hostile_guest_is_served_and_ended(kvm: Kvm, seed: int, engine: str) -> None:
    lacks = missing(kvm, {"user": user.NEEDED, "kernel": kernel.NEEDED}[engine])
    if lacks:
        pytest.skip(f"this KVM lacks {', '.join(lacks)}")
    options = {"engine": engine, "on_panic": "keep", "cpus": 1 + seed % 2, "max_memory": 256 << 20}
    with Flooded(program(seed), **options) as machine:
        began, slowest, status = time.monotonic(), 0.0, {}
        while time.monotonic() - began < SECONDS:
            answer, status = machine.ask()
            slowest = max(slowest, answer)
            time.sleep(0.05)
        _, code = machine.end(signal.SIGTERM)
        said = machine.stderr()
    exits = sum(sum(each.values()) for each in status["exits"].values())
    print(
        f"seed {seed}: {exits} exits, {status['resets']} resets, slowest answer {slowest * 1000:.0f} ms, {said[:300]}"
    )
    assert "Traceback" not in said, said
    assert "unexpected error" not in said, said
    assert code == 128 + signal.SIGTERM
    assert slowest < ANSWER_LIMIT * SLACK
    assert exits > 50 or status["resets"], "it did not run"
