"""iperf3's servers on the host's side, for the benchmarks."""

from __future__ import annotations

import os
import subprocess


def serve(port: int, *options: str, output: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start a server. Its temporary file lies in memory: iperf3 truncates it after its removal, which 9p, the
    emulated host's /tmp, refuses; the client sees a stream that cannot be made.
    """
    words = ["iperf3", "-s", "-p", str(port), *options]
    environment = os.environ | {"TMPDIR": "/dev/shm"}
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, text=True, env=environment)
