"""A session with a tiny guest: what it makes and starts, and that all of it is put back, after a failed start too."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

from pyvmm import trace
from pyvmm.client.qmp import Client, Disconnected
from pyvmm.errors import ConfigError
from pyvmm.host.inside import socket_path
from pyvmm.kvm import Kvm
from pyvmm.launch.consoles import CallbackConsole
from pyvmm.launch.session import SWITCH_INTERVAL, Session
from pyvmm.launch.trace_sinks import TraceSettings
from pyvmm.machine import MachineConfig
from tests.support.flooded import MEMORY, kernel

pytestmark = pytest.mark.kvm

PRINT_A = bytes.fromhex("66BAF803 B041 EE EBFE")  # mov dx, 0x3f8; mov al, 'A'; out dx, al; jmp $


@pytest.fixture
def config(kvm: Kvm, tmp_path: Path) -> MachineConfig:
    (tmp_path / "kernel").write_bytes(kernel(PRINT_A))
    return MachineConfig(kernel=tmp_path / "kernel", memory=MEMORY, entry="pvh")


def descriptors() -> set[str]:
    gc.collect()
    return {f"{number} {os.readlink(f'/proc/self/fd/{number}')}" for number in _numbers()}


def _numbers() -> list[str]:
    return [each for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)]


def test_it_runs_a_machine_with_console_monitor_traces_and_signals(config: MachineConfig, tmp_path: Path) -> None:
    console, signals = bytearray(), list[int]()
    socket, file = tmp_path / "s.sock", tmp_path / "t.txt"
    before = handlers(), sys.getswitchinterval()
    settings = TraceSettings(["machine.state"], file)
    session = Session(
        config, sockets=[socket], trace=settings, console=lambda: CallbackConsole(console.extend, place="here")
    )
    with session:
        assert sys.getswitchinterval() <= SWITCH_INTERVAL * 1.01
        machine = session.machine

        def signalled(number: int) -> None:
            signals.append(number)
            machine.quit()

        session.start(signalled)
        bound = Path(socket_path(socket))  # in the emulated host not the outer path
        assert (machine.monitor.console_place, bound.exists()) == ("here", True)
        while not console:
            session.loop.step(10)
        os.kill(os.getpid(), signal.SIGTERM)
        assert machine.run().kind == "quit"
    assert (console, signals) == (b"A", [signal.SIGTERM])
    assert (handlers(), sys.getswitchinterval()) == before
    assert "machine.state" in file.read_text()
    with pytest.raises(Disconnected):
        Client(bound)


def test_a_start_that_fails_gives_everything_back(config: MachineConfig, tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    with Session(config, sockets=[socket]) as session:  # once before, for what is made once a process
        session.start()
    before = handlers(), sys.getswitchinterval(), descriptors()
    config.kernel.write_bytes(b"no kernel")
    settings = TraceSettings(["machine.state"], tmp_path / "t.txt")
    with pytest.raises(ConfigError), Session(config, sockets=[socket], trace=settings) as session:
        session.start(lambda number: None)
    assert (handlers(), sys.getswitchinterval(), descriptors()) == before
    assert not Path(socket_path(socket)).exists()
    assert not any(event.on for event in trace.events() if event.name == "machine.state")


def test_a_session_without_signals_leaves_them_alone(config: MachineConfig) -> None:
    before = handlers()
    with Session(config) as session:
        session.start()
        assert handlers() == before
