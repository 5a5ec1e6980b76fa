"""A machine whose guest floods it: a few bytes of code on the local KVM, with monitor, signals and a time limit.

    with Flooded("B9 03 00 00 40 B8 01 00 00 00 31 D2 0F 30 EB FC") as machine:   # 32-bit code; PVH's entry
        seconds, status = machine.ask()          # one `pyvmm status`'s worth of QMP
        seconds, code = machine.end(signal.SIGTERM)

The machine is a process of its own, as `pyvmm run` is, because signals and the GIL are what is tried.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.load import Lap

ENTRY = 0x100000
MEMORY = 32 << 20
START_LIMIT = 30.0
END_LIMIT = 20.0


def kernel(code: bytes) -> bytes:
    """An ELF executable that PVH enters at ENTRY, in 32-bit protected mode with flat segments."""
    name, entry = b"Xen\0", struct.pack("<Q", ENTRY)
    note = struct.pack("<III", len(name), len(entry), 18) + name + entry
    code = code.ljust(0x1000, b"\xf4")
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    at = 64 + 2 * 56
    table = struct.pack("<IIQQQQQQ", 1, 7, at, ENTRY, ENTRY, len(code), len(code), 4096)
    table += struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    return head + table + code + note


class Flooded:
    """The process, from its monitor's first answer to its end. `options` are MachineConfig's."""

    def __init__(self, code: str, *, timeout: float | None = None, console: str = "none", **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pyvmm-flood-")
        folder = Path(self._folder.name)
        self.socket = folder / "vm.sock"
        (folder / "kernel").write_bytes(kernel(bytes.fromhex(code)))
        options = {"memory": MEMORY, "entry": "pvh"} | options
        self._said: str | None = None
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                __name__,
                str(folder / "kernel"),
                str(self.socket),
                repr(timeout),
                console,
                repr(options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        until = time.monotonic() + START_LIMIT
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the machine did not start: {self.stderr()}")
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        """Whether the monitor takes connections: its socket is there a moment before."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            return made.connect_ex(str(self.socket)) == 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stderr()
        self._folder.cleanup()

    def ask(self, command: str = "x-status") -> tuple[float, Any]:
        """Seconds from connecting to the answer, as `Lap` counts them, and the answer."""
        from pyvmm.client.qmp import Client

        with Lap(self._process.pid) as lap, Client(self.socket) as client:
            answer = client.execute(command)
        return lap.seconds, answer

    def end(self, number: int = signal.SIGTERM) -> tuple[float, int]:
        """Seconds from the signal to the process's end, as `Lap` counts them, and its exit status."""
        with Lap(self._process.pid) as lap:
            os.kill(self._process.pid, number)
            code = lap.wait(self._process, END_LIMIT)
        return lap.seconds, code

    def wait(self) -> int:
        """The exit status."""
        return self._process.wait(END_LIMIT)

    @property
    def resident_mib(self) -> float:
        """What the process keeps in memory of its own, without the guest's RAM."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * 4096 / (1 << 20)

    def stderr(self) -> str:
        """What it said. Ends it."""
        if self._said is None:
            self._process.kill()
            self._said = self._process.communicate()[1]
        return self._said


def _main() -> int:
    import ast

    from pyvmm.launch.attended import RunOptions, run_session
    from pyvmm.machine import MachineConfig

    path, socket, timeout, console, options = sys.argv[1:]
    config = MachineConfig(kernel=Path(path), **ast.literal_eval(options))
    return run_session(config, RunOptions(console=console, timeout=ast.literal_eval(timeout)), [Path(socket)])


if __name__ == "__main__":
    sys.exit(_main())
