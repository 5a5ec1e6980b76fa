"""`pyvmm balance` with real guests: the one that needs memory gets what the other has free, within the budget.

Two machines as a user starts them, each in an emulated host of its own where Linux does not run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.host.qemu import PROGRAM
from tests.support.boot_hosts import lacks_qemu, runs_here

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(lacks_qemu() and not runs_here(), reason=f"needs {PROGRAM} or a KVM that runs Linux"),
]
MIB = 1 << 20
BOOT, LEAST, BUDGET = 384, 224, 768  # MiB
FILL = 235  # MiB that one of them needs all at once
LIMIT = 120.0  # seconds for each wait; two guests side by side under emulation
PYVMM = (sys.executable, "-m", "pyvmm.cli.main")


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    argv = [*PYVMM, "run", "-m", f"{BOOT}M,min={LEAST}M,max={BUDGET}M", "--console", "none", "--timeout", "400"]
    argv += ["--append", "hv_balloon.pressure_report_delay=2", "--name"]
    started = [subprocess.Popen([*argv, name], stdin=subprocess.DEVNULL) for name in ("busy", "idle")]
    try:
        yield started
    finally:
        for name in ("busy", "idle"):
            subprocess.run([*PYVMM, "kill", name], check=False, capture_output=True)
        for process in started:
            process.wait(30)


def until(done: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < limit, what
        time.sleep(0.2)


def execute(name: str, command: str, /, **arguments: Any) -> Any:
    from pyvmm.cli.target import connect
    from pyvmm.client import registry

    with connect(registry.find(name), LIMIT) as client:
        return client.execute(command, arguments)


def test_the_guest_in_need_gets_what_the_other_has_free(
    guests: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    until(lambda: all((tmp_path / "pyvmm" / f"{name}.sock").exists() for name in ("busy", "idle")), "monitors")
    assert [execute(name, "x-execute", command="true", timeout=100)["status"] for name in ("busy", "idle")] == [0, 0]
    looks = tmp_path / "looks"
    with looks.open("wb") as file:
        balancer = subprocess.Popen(
            [*PYVMM, "balance", "--budget", f"{BUDGET}M", "--interval", "0.5", "--json", "busy", "idle"],
            stdout=file,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

        def last() -> dict[str, Any]:
            lines = looks.read_text().splitlines()[:-1]
            return {each["name"]: each for each in json.loads(lines[-1])["guests"]} if lines else {}

        try:
            until(lambda: last() and all(each["demand"] for each in last().values()), "both have reported")
            command = (
                f"mkdir -p /mnt; mount -t tmpfs -o size=95% need /mnt; dd if=/dev/zero of=/mnt/f bs=1M count={FILL}"
            )
            assert execute("busy", "x-execute", command=command, timeout=60)["status"] == 0
            until(lambda: last()["busy"]["current"] > (BOOT + 16) * MIB, "the busy guest has grown")
        finally:
            balancer.kill()
            balancer.wait()
    seen = [json.loads(line) for line in looks.read_text().splitlines()[:-1]]
    assert all(each["used"] <= BUDGET * MIB for each in seen)
    assert not any(each["problems"] for each in seen)
    idle = last()["idle"]["current"]
    assert LEAST * MIB <= idle < BOOT * MIB
    assert all(process.poll() is None for process in guests)
