"""Hostile guests, each in a machine of its own, on any KVM and each engine it has: pyvmm serves, refuses and ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pyvmm.hyperv import kernel, user
from pyvmm.kvm import Kvm
from pyvmm.loop import Loop
from pyvmm.machine import Machine, MachineConfig
from pyvmm.machine.engines import missing
from tests.support.flooded import MEMORY, Flooded
from tests.support.flooded import kernel as elf
from tests.support.hostile import program

pytestmark = pytest.mark.kvm

SECONDS = float(os.environ.get("PYVMM_HOSTILE_SECONDS", "1.5"))
ANSWER_LIMIT = 0.5
SLACK = 6.0 if os.environ.get("PYVMM_INSIDE_HOST") else 2.0
"""How much slower a loaded test machine may be, or an emulated one."""


def _need_engine(kvm: Kvm, engine: str) -> None:
    lacks = missing(kvm, {"user": user.NEEDED, "kernel": kernel.NEEDED}[engine])
    if lacks:
        pytest.skip(f"this KVM lacks {', '.join(lacks)}")


@pytest.mark.parametrize("engine", ["user", "kernel"])
def test_a_hostile_guest_raises_nothing(kvm: Kvm, engine: str, tmp_path: Path) -> None:
    """In this process, so that it is quick where a further one takes its time."""
    _need_engine(kvm, engine)
    path = tmp_path / "kernel"
    path.write_bytes(elf(bytes.fromhex(program(7))))
    config = MachineConfig(kernel=path, memory=MEMORY, entry="pvh", engine=engine, on_panic="keep")  # type: ignore[arg-type]
    loop = Loop()
    with Machine(config, loop) as machine:
        machine.start()
        loop.after(SECONDS, machine.quit)
        outcome = machine.run()
        exits = sum(sum(each.values()) for each in machine.monitor.describe()["exits"].values())
        print(f"{exits} exits, longest turn {loop.longest_turn * 1000:.0f} ms, {machine.services.bus.refused}")
    loop.close()
    assert outcome.kind == "quit", outcome
    assert exits > 50 or machine.resets


@pytest.mark.own_process
@pytest.mark.parametrize("engine", ["user", "kernel"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("PYVMM_HOSTILE_SEEDS", "2"))))
def test_a_hostile_guest_is_served_and_ended(kvm: Kvm, seed: int, engine: str) -> None:
    _need_engine(kvm, engine)
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
