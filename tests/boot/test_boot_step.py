"""`pyvmm step` and `pyvmm map` with Linux."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

LIMIT = 120.0


@pytest.mark.parametrize(("engine", "cpus"), [("kernel", "2"), ("user", "1")])
def test_linux_is_stepped_to_its_contact_its_balloon_and_back_into_running(engine: str, cpus: str) -> None:
    words = [sys.executable, "-m", "pyvmm", "step", "--linux", "--host", "local", "-m", "256M"]
    words += ["--hyperv", engine, "--cpus", cpus, "--script", "m m; t hv_balloon_state_change; p; v; i"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third, fourth, _ = re.findall(r"^#\d+  (.*?)  [0-9.]+ s$", done.stdout, re.MULTILINE)
    assert first == "guest -> host  message INITIATE_CONTACT"
    assert second == "host -> guest  message VERSION_RESPONSE"
    assert third.startswith("trace event hv_balloon_state_change")
    assert "packet" in fourth
    assert "WIN10_5_3" in done.stdout
    owners = ("hypercall page", "SynIC message page (SIMP): VP 0", "ring of a channel: hv-balloon, guest to host")
    assert all(each in done.stdout for each in owners)
