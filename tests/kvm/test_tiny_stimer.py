"""Synthetic timers of a whole machine with a tiny kernel: the user engine's anywhere, KVM's own where it has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.hyperv import kernel as kernel_engine
from pyvmm.kvm import Kvm
from pyvmm.machine.engines import missing
from tests.support.timer_guest import TimerGuest, timer_kernel

pytestmark = pytest.mark.kvm

MS = 10_000  # in 100 ns
RUN_HERE = Path(__file__).parents[1] / "support" / "run_here.py"


@pytest.fixture(params=["user", "kernel"])
def engine(request: pytest.FixtureRequest, kvm: Kvm) -> str:
    if request.param == "kernel" and (lacks := missing(kvm, kernel_engine.NEEDED)):
        pytest.skip(f"this KVM lacks {lacks[0]}")
    return str(request.param)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "message"])
@pytest.mark.parametrize("one_shot", [True, False], ids=["one-shot", "periodic"])
def test_a_timer_interrupts_again_and_again_and_never_early(
    tmp_path: Path, engine: str, direct: bool, one_shot: bool
) -> None:
    with TimerGuest(tmp_path, engine, 2 * MS, direct=direct, one_shot=one_shot) as guest:
        guest.run(until=20)
        times, late = guest.times(), guest.lateness()
    assert times == sorted(times)
    assert times[19] - times[0] >= 18 * 2 * MS
    if one_shot:
        assert min(late) >= -10, "a microsecond: the page and the counter are read one after the other"


def test_a_reset_stops_the_timers(tmp_path: Path, engine: str) -> None:
    with TimerGuest(tmp_path, engine, MS) as guest:
        guest.run(until=3)
        guest.machine.reset()
        guest.run(until=3)
        assert guest.machine.engine.reference_time() > 0


@pytest.mark.own_process
def test_a_confined_machine_has_its_timers(tmp_path: Path, kvm: Kvm) -> None:
    """Seccomp lets it set alarms, which it made before."""
    (tmp_path / "kernel").write_bytes(timer_kernel(10 * MS))
    options = ["--kernel", str(tmp_path / "kernel"), "-m", "32M", "--entry", "pvh", "--hyperv", "user"]
    options += ["--enlightenments", "stimer,stimer-direct", "--sandbox", "on", "--console", "none"]
    options += ["--trace", "hyperv.timer_expired", "--timeout", "1"]
    command = [sys.executable, str(RUN_HERE), "run", *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 124, done.stderr
    assert done.stderr.count("timer_expired") > 5, done.stderr
    assert "error" not in done.stderr
