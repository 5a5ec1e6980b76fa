"""The KVM binding's tests once more, where KVM has Hyper-V: the local one often has not.

Not those that start a pyvmm of their own (`own_process`): under emulation each takes a minute or more to start.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 200  # seconds


def test_the_kvm_binding_passes_its_tests_where_linux_runs() -> None:
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-m", "not own_process", "--durations=5"]
    command = [sys.executable, "-m", "pytest", *options, "tests/kvm"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text
