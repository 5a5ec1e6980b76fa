"""Keeps a guest of the test bed for its user, e.g. after a failed test: registered by name, with a monitor.

    vm.publish("failed")       `pyvmm status failed`, `log`, `gdb`, `stop` reach it while the loop runs
    vm.keep("failed")          the same for a forked child, which serves it until `pyvmm stop failed` and then ends

In an emulated host the name is the outer side's: it claims the name and forwards a socket (`python -m pyvmm.host exec
--forward SOCKET`, or `run_in_host`), and here `socket` is its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.client import registry
from pyvmm.control.server import ControlServer
from pyvmm.errors import ConfigError
from pyvmm.host.inside import inside, socket_place, user_pid
from pyvmm.process import signals_as_exceptions

if TYPE_CHECKING:
    from pyvmm.testbed.vm import VM

_PR_SET_PDEATHSIG = 1


def publish(vm: VM, name: str, socket: Path | None, closing: contextlib.ExitStack) -> None:
    """See `VM.publish`; what is made is freed by `closing`."""
    if inside():
        if socket is None:
            raise ConfigError("in an emulated host a guest is kept at a socket that the outer side forwards: name it")
        place = socket_place(socket)
        registry.check_name(name)
    else:
        place = closing.enter_context(registry.claim(name, ["pytest", *sys.argv[1:]], socket)).socket
    vm.machine.name = vm.machine.monitor.name = name
    vm.machine.monitor.pid = user_pid()
    assert isinstance(place, Path)
    closing.enter_context(ControlServer(vm.loop, vm.machine.monitor, place))


def detach() -> None:
    """Make this process outlive its parent, the parent's terminal, and who reads the parent's output."""
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


def serve(vm: VM) -> None:
    """Run the machine until it ends, or a signal ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with signals_as_exceptions():
            vm.machine.run()
    finally:
        vm.close()
