"""Linux in a confined `pyvmm run`: resized both ways, rebooted and traced, all of it by what was open before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.client.qmp import Client
from pyvmm.errors import HostError
from pyvmm.host.inside import socket_path
from pyvmm.images.catalog import find_image
from tests.support.booted import BOOT_LIMIT, MIB


def wait(ready: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + BOOT_LIMIT
    while not (found := ready()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)
    return found


def connected(socket: Path) -> Client | None:
    try:
        return Client(socket, BOOT_LIMIT)
    except HostError:
        return None


@pytest.mark.boot
@pytest.mark.parametrize("engine", ["kernel", "user"])
def test_linux_is_resized_rebooted_and_traced_under_the_sandbox(engine: str, tmp_path: Path) -> None:
    image = find_image("debian-6.1", build=False)
    console, trace, qmp = tmp_path / "console", tmp_path / "trace.jsonl", tmp_path / "qmp.sock"
    argv = [sys.executable, "-m", "pyvmm", "run", "--kernel", str(image.vmlinux), "--initrd", str(image.initrd)]
    argv += ["--hyperv", engine, "--cpus", "2", "-m", "256M,max=512M", "--sandbox", "require", "--qmp", str(qmp)]
    argv += ["--console", str(console), "--trace-file", str(trace), "--name", f"confined-{engine}"]
    with subprocess.Popen(argv, env=os.environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            client = wait(lambda: connected(Path(socket_path(qmp))), "monitor")

            def agent() -> bool:
                return bool(client.execute("x-status")["agent"]["ready"])

            def resized(size: int) -> None:
                client.execute("balloon", {"value": size})
                wait(lambda: client.execute("query-balloon")["actual"] == size, f"{size >> 20} MiB")

            for lives in (1, 2):
                wait(agent, f"agent in life {lives}")
                wait(lambda: client.execute("x-status")["balloon"].get("version"), "balloon")
                resized(160 * MIB)
                resized(400 * MIB)
                if lives == 1:
                    client.execute("system_reset")
                    wait(lambda: not agent(), "reset")
            status = client.execute("x-status")
            assert status["resets"] == 1
            assert status["sandbox"]["mode"] == "require"
            assert status["sandbox"]["missing"] == []
            assert status["memory"]["resident"] > 16 * MIB
            client.execute("quit")
            _, said = process.communicate(timeout=BOOT_LIMIT)
            assert (process.returncode, said) == (0, b"")
        finally:
            process.kill()
    assert "hv_balloon" in trace.read_text()
    assert console.exists()
    assert not Path(socket_path(qmp)).exists()
