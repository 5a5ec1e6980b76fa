"""Whose modules a forked Python runs: those of the checkout that the command came from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

FORK = """
import os, sys
from pyvmm.host import zygote
from pyvmm.host.zygote import Zygote
zygote._OWN_PACKAGE = "own"  # in the place of pyvmm, of which this test needs only one
theirs, ours, module, sources = sys.argv[1:]
sys.path.insert(0, theirs)
import own
assert own.__file__.startswith(theirs)
status = Zygote("imported", theirs)._run(module, [], dict(os.environ), sources, ours)
sys.stdout.flush()
os._exit(status)
"""


def run(tmp_path: Path, module: str, sources: str, ours: str) -> str:
    for name in ("theirs", "ours", "cwd"):
        (tmp_path / name / "own").mkdir(parents=True)
        (tmp_path / name / "own/__init__.py").write_text("")
        (tmp_path / name / "own/marker.py").write_text("print(__file__)\n")
    (tmp_path / "cwd/script.py").write_text("import own.marker\n")
    (tmp_path / "cwd/own").rename(tmp_path / "cwd/own_" if module == "script" else tmp_path / "cwd/own")
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORK, str(tmp_path / "theirs"), str(tmp_path / ours), module, sources],
        cwd=tmp_path / "cwd",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).relative_to(tmp_path).parts[0]


@pytest.mark.parametrize("module", ["own.marker", "script"])
def test_a_command_of_another_checkout_runs_its_own_code(tmp_path: Path, module: str) -> None:
    assert run(tmp_path, module, "another state", "ours") == "ours"


@pytest.mark.parametrize("module", ["own.marker", "script"])
@pytest.mark.parametrize("sources", ["imported", "edited since"])
def test_a_command_of_the_same_checkout_runs_that(tmp_path: Path, module: str, sources: str) -> None:
    assert run(tmp_path, module, sources, "theirs") == "theirs"
