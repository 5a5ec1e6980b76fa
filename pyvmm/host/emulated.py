"""An emulated host owned by this process, which ends with it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb_place import Place
from pyvmm.host import boot_image, cache_limits, snapshot
from pyvmm.host.boot_image import Progress
from pyvmm.host.client import Request, run_command
from pyvmm.host.endpoint import Disconnected, Endpoint
from pyvmm.host.protocol import Frame, Kind
from pyvmm.host.qemu import Qemu, find_qemu

SIZES_MIB = (1536, 2560, 4608, 8704, 16896, 33280)
"""Memory classes of hosts, in MiB: a guest's plus 512. Few, so that saved hosts are reused."""

LARGE_STEP_MIB = 32768  # step between larger classes
OWN_MIB = 512  # for the host's kernel, Python and page tables
AGENT_LIMIT = 60.0  # seconds from the `go` line to the agent's HELLO


def memory_for(guest_mib: int) -> int:
    """Return the host's memory class, in MiB, for guests of `guest_mib` in total."""
    for size in SIZES_MIB:
        if guest_mib + OWN_MIB <= size:
            return size
    return -(-(guest_mib + OWN_MIB) // LARGE_STEP_MIB) * LARGE_STEP_MIB


class EmulatedHost:
    """A Linux with KVM under QEMU, sharing this machine's files."""

    def __init__(self, machine: Qemu) -> None:
        self._machine = machine
        self.endpoint = Endpoint(machine.port)
        self._stream = 1
        self.memory_mib = 0  # actual size, perhaps more than requested

    @classmethod
    def start(
        cls, *, memory_mib: int = SIZES_MIB[0], progress: Progress = lambda line: None, exact: bool = False
    ) -> EmulatedHost:
        """Restore a saved host with at least `memory_mib`, or boot one and save it. Raises HostError or ConfigError,
        in one line.

        `exact`: use only one whose pyvmm modules are those of this checkout now.
        """
        if memory_mib < 256:
            raise ConfigError(f"an emulated host needs 256 MiB of memory or more, not {memory_mib}")
        find_qemu()  # fail without QEMU before anything is fetched
        image = boot_image.prepare(progress)
        for attempt in range(2):
            saved = snapshot.find(image, memory_mib, exact=exact)
            if saved is None:
                saved = snapshot.make(image, memory_mib, progress, exact=exact)
            try:
                machine = snapshot.restore(saved, image)
                try:
                    host = cls(machine)
                    host.memory_mib = saved.memory_mib
                    host._start_agent()
                except BaseException:
                    machine.kill()
                    raise
                return host
            except HostError:
                if attempt:
                    raise
                progress("the saved host does not start: booting a new one")
                cache_limits.remove(Path(saved.folder))
        raise AssertionError("not reached")

    def _start_agent(self) -> None:
        line = f"go {time.time():.3f} {os.urandom(32).hex()}\n"
        until = time.monotonic() + AGENT_LIMIT
        try:
            os.write(self._machine.port, line.encode())
            while time.monotonic() < until:
                for frame in self.endpoint.step(max(0.0, until - time.monotonic())):
                    if frame.kind is Kind.HELLO:
                        return
        except (Disconnected, OSError) as error:
            raise HostError(f"emulated host: ended while starting: {self._machine.why_ended()}") from error
        raise HostError(f"emulated host: its agent does not start: {self._machine.why_ended()}")

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        tty: bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        forward_sockets: Sequence[Place] = (),
    ) -> int:
        """Run a command in the host; returns as subprocess does. One at a time (the daemon runs many)."""
        return self.run_request(Request(argv, stdin, stdout, stderr, tty, env, cwd, list(forward_sockets)))

    def run_request(self, request: Request) -> int:
        """Run a command like `run`, given as a Request."""
        stream, self._stream = self._stream, self._stream + (1 << 16)
        return run_command(self.endpoint, request, stream)

    def stop(self) -> None:
        """Power the host off."""
        try:
            self.endpoint.send(Frame(Kind.POWEROFF))
            self.endpoint.flush()
            self._machine.process.wait(5)
        except Exception:
            pass
        finally:
            self._machine.kill()

    def __enter__(self) -> EmulatedHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
