"""The self-test's programs, run by this computer's own Linux."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.selftest.programs import FAULTS, PROGRAMS


def run(folder: Path, name: str, *words: str) -> int:
    path = folder / name
    path.write_bytes(PROGRAMS[name])
    path.chmod(0o755)
    return subprocess.run([str(path), *words], timeout=30, check=False).returncode


@pytest.mark.parametrize("number", FAULTS)
def test_each_fault_ends_the_program_by_its_signal(tmp_path: Path, number: int) -> None:
    assert run(tmp_path, "fault", str(number)) == -FAULTS[number][1]


@pytest.mark.parametrize(("name", "flag"), [("state128", "sse2"), ("state256", "avx"), ("state512", "avx512f")])
def test_registers_hold(tmp_path: Path, name: str, flag: str) -> None:
    if flag not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {flag}")
    assert run(tmp_path, name, "1") == 0


@pytest.mark.parametrize(("name", "flag"), [("state128", "sse2"), ("state256", "avx"), ("state512", "avx512f")])
def test_a_register_that_changes_is_noticed(tmp_path: Path, name: str, flag: str) -> None:
    """One that the program clears itself, in the place of its CPUID."""
    if flag not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {flag}")
    again, broken = bytes.fromhex("31c0 0fa2 b818000000"), bytes.fromhex("0f57ff 90 b818000000")  # xorps xmm7, xmm7
    assert PROGRAMS[name].count(again) == 1
    path = tmp_path / name
    path.write_bytes(PROGRAMS[name].replace(again, broken))
    path.chmod(0o755)
    assert subprocess.run([str(path), "1"], timeout=30, check=False).returncode == 1


def test_kexec_ends_with_an_error_if_there_is_no_kernel(tmp_path: Path) -> None:
    assert run(tmp_path, "kexec", "/nowhere", "/nowhere", "quiet") > 0
