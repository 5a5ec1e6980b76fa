"""`pyvmm kut` and `pyvmm run --test-devices` as commands, with a suite of our own tiny Multiboot kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_multiboot import elf32, exit_with, flat, say

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

RUN_HERE = Path(__file__).parents[1] / "support" / "run_here.py"
CONFIG = """
[good]
file = good.flat
groups = some
[bad]
file = bad.flat
timeout = 30
groups = some
[absent]
file = absent.flat
"""


@pytest.fixture
def suite(kvm: object, tmp_path: Path) -> Path:
    (tmp_path / "unittests.cfg").write_text(CONFIG)
    (tmp_path / "good.flat").write_bytes(flat(say(b"hello\nSUMMARY: 1 tests\n") + exit_with(0)))
    (tmp_path / "bad.flat").write_bytes(elf32(say(b"FAIL: one and one\n") + exit_with(1)))
    return tmp_path


def pyvmm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RUN_HERE, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_a_table_with_a_failure_ends_with_status_1(suite: Path) -> None:
    done = pyvmm("kut", suite, "--hyperv", "user", "--logs", suite / "logs")
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[:4]] == ["RESULT", "PASS", "FAIL", "SKIP"], done.stderr
    assert (lines[1][2:], lines[2][2:]) == (["good", "1 tests"], ["bad", "FAIL: one and one"])
    assert "build it with make" in done.stdout
    assert "1 passed, 1 failed, 0 timed out, 1 skipped" in done.stdout
    assert "user engine" in done.stdout
    assert (suite / "logs" / "good.log").read_text() == "hello\nSUMMARY: 1 tests\n"
    assert done.returncode == 1


def test_chosen_tests_that_pass_end_with_status_0(suite: Path) -> None:
    done = pyvmm("kut", suite, "good", "--json", "--hyperv", "user")
    (row,) = json.loads(done.stdout)["tests"]
    assert (row["name"], row["verdict"], row["why"], done.returncode) == ("good", "PASS", "1 tests", 0), done.stderr


def test_one_image_by_hand_ends_with_the_guests_status(suite: Path) -> None:
    done = pyvmm("run", "--kernel", suite / "bad.flat", "--test-devices", "--hyperv", "user")
    assert (done.stdout, done.stderr, done.returncode) == ("FAIL: one and one\n", "", 3)
