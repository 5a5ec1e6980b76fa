"""A booted guest as a template: frozen once, then forked for each test, which finds it as it was at the freeze.

    with VM("debian-6.1").boot() as vm, Template(vm) as template:
        child = template.fork(lambda vm: vm.balloon.resize("256M").ok)
        status = child.wait(60)

The template's process has one thread and no KVM, and its RAM is never written again. Children run side by side, each
with a VM of its own. All that a child changes, in Python too, is gone with it: what it found goes out by its exit
status, or by a pipe or file that was opened before.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from pyvmm.errors import ConfigError
from pyvmm.machine.frozen import FrozenMachine
from pyvmm.process import kill_with_parent

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

CHILD_FAILED = 70
"""Exit status of a child whose `run` raised an exception, with the traceback on standard error (EX_SOFTWARE)."""


class Child:
    """A forked guest's process. The parent must `wait` for it, or `kill` it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return the exit status, minus the number of the signal that ended it, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status, as `poll` does. Raises TimeoutError."""
        if self._status is None:
            ready, _, _ = select.select([self._pidfd], [], [], timeout)
            if not ready:
                raise TimeoutError(f"the forked guest (pid {self.pid}) did not end within {timeout:g} s")
            self._ended(os.waitpid(self.pid, 0)[1])
        assert self._status is not None
        return self._status

    def kill(self) -> None:
        """End the process at once, and wait until it is gone. Harmless twice."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def _ended(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        os.close(self._pidfd)


class Template:
    """A frozen guest. `vm` is running; it stands still afterwards, and is used in forks only.

    Raises ConfigError, and then the guest runs on, if this process has threads that a fork would lack, a debugger is
    connected, or the guest has just ended; HostError.
    """

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._frozen: FrozenMachine | None = FrozenMachine(vm.machine)

    def fork(self, run: Callable[[VM], int | None]) -> Child:
        """Fork this process; the child calls `run(vm)` with the guest running, and ends with its result as status.

        None is 0; an exception gives CHILD_FAILED. The child is killed when this process ends. Raises OSError.
        """
        self._check()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end_with_parent = kill_with_parent()
        pid = os.fork()
        if not pid:
            self._run_child(run, end_with_parent)
        return Child(pid)

    def _run_child(self, run: Callable[[VM], int | None], end_with_parent: Callable[[], None]) -> NoReturn:
        status = CHILD_FAILED
        try:
            end_with_parent()
            status = run(self.resume_here()) or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        _leave(status)

    def resume_here(self) -> VM:
        """Let the guest run in this process, usually a fork of the one that made the template. Once in each process.

        Raises HostError.
        """
        frozen = self._check()
        self._frozen = None
        frozen.resume()
        return self._vm

    def digest(self) -> str:
        """Return a checksum of the guest's RAM as it was frozen: it stays the same whatever children do."""
        self._check()
        found = []
        for backing in self._vm.machine.ram.backings:
            for offset, length in backing.frozen_parts or ():
                found.append(f"{offset:x}:{zlib.crc32(backing.view[offset : offset + length]):08x}")
        return " ".join(found)

    def _check(self) -> FrozenMachine:
        if self._frozen is None:
            raise ConfigError("the template was closed, or its guest runs in this process already")
        return self._frozen

    def close(self) -> None:
        """Free the guest; children run on. In a process where the guest was resumed do nothing. Harmless twice."""
        if self._frozen is not None:
            self._frozen = None
            self._vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _leave(status: int) -> NoReturn:
    """End a forked process without the clean-up of its parent: atexit, open files, temporary folders."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status & 0xFF)
