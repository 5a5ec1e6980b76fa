"""The guest's program that runs another one in a scheduling class."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyvmm.images.scheduled import PROGRAM, SCHED_RR, program

SHOW = "import os, sys; print(os.sched_getscheduler(0), sys.argv[1:], os.environ['HERE'])"


def run(folder: Path, contents: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = folder / "program"
    file.write_bytes(contents)
    file.chmod(0o755)
    return subprocess.run([file, *arguments], capture_output=True, text=True, env={"HERE": "yes"}, timeout=20)


def test_another_program_runs_with_its_arguments_and_environment(tmp_path: Path) -> None:
    found = run(tmp_path, program(os.SCHED_OTHER, 0), "/usr/bin/env", "python3", "-c", SHOW, "a", "b c")
    assert (found.stdout, found.returncode) == (f"{os.SCHED_OTHER} ['a', 'b c'] yes\n", 0)


def test_the_class_is_set_where_that_is_allowed(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("no right to real-time scheduling (CAP_SYS_NICE)")
    os.sched_setscheduler(0, *before)
    found = run(tmp_path, program(SCHED_RR, 1), "/usr/bin/env", "python3", "-c", SHOW)
    assert found.stdout.split()[0] == str(os.SCHED_RR)


def test_a_program_that_is_not_there_gives_the_shells_status(tmp_path: Path) -> None:
    assert run(tmp_path, PROGRAM, "/nowhere").returncode == 127
