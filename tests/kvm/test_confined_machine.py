"""`pyvmm run` confined, with a tiny kernel: what its threads can do no more, and that it does all it should."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.client.qmp import Client, Disconnected
from pyvmm.disks.spec import PROGRAM
from pyvmm.errors import HostError
from pyvmm.kvm import Kvm
from pyvmm.sandbox import landlock, seccomp
from tests.support.qcow2 import make_qcow2
from tests.support.tiny_kernel import TEXT, vmlinux

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

RUN_HERE = Path(__file__).parents[1] / "support" / "run_here.py"
TIMEOUT = 30.0
REFUSED = {"EPERM", "EACCES", "ENOSYS"}


@pytest.fixture(autouse=True)
def needs_kvm(kvm: Kvm) -> None:
    """Skips with the reason."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kernel, and a runtime folder beside it."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    return tmp_path


def wait(ready: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        assert time.monotonic() < deadline, f"no {what} in {TIMEOUT:.0f} s"
        time.sleep(0.02)


class Running:
    """A `pyvmm run` of the tiny kernel, with its monitor."""

    def __init__(self, folder: Path, *options: str, pass_fds: tuple[int, ...] = (), **environment: str) -> None:
        self.console = folder / "console"
        self.qmp = folder / "vm.sock"
        argv = [sys.executable, str(RUN_HERE), "run", "--kernel", str(folder / "vmlinux"), "-m", "64M"]
        argv += ["--name", "tiny", "--console", str(self.console), "--qmp", str(self.qmp), *options]
        self.process = subprocess.Popen(
            argv, env=os.environ | environment, pass_fds=pass_fds, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def client(self) -> Client:
        wait(lambda: self.qmp.exists() or self.process.poll() is not None, "monitor")
        client = Client(self.qmp, timeout=TIMEOUT)
        client.__enter__()
        return client

    def lines(self) -> int:
        return self.console.read_bytes().count(TEXT.strip()) if self.console.exists() else 0

    def end(self) -> tuple[int, str]:
        """Exit status, and what it said."""
        _, said = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, said.decode()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def victim() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_qcow2_image_is_added_to_a_confined_machine_and_its_daemon_ends_with_it(folder: Path) -> None:
    for name in ("first", "second", "third"):
        make_qcow2(folder / f"{name}.qcow2", 64 << 20)
    first = f"{folder / 'first.qcow2'},format=qcow2"
    with Running(folder, "--disk", first) as running:
        client = running.client()
        for name in ("second", "third"):
            spec = f"{folder / name}.qcow2,format=qcow2,id={name}"
            argv = [sys.executable, str(RUN_HERE), "disk", "add", "--socket", str(running.qmp), spec]
            done = subprocess.run(argv, capture_output=True, text=True)
            assert f"{name}: 64 MiB" in done.stdout, done.stderr  # then: the tiny guest has no driver
        rows = client.execute("query-block")
        assert [row["inserted"]["drv"] for row in rows] == ["qcow2"] * 3
        client.execute("device_del", {"id": "second"})
        client.wait_event({"DEVICE_DELETED"}, TIMEOUT)
        wait(lambda: not daemons(folder / "second.qcow2"), "end of the second's daemon")
        assert daemons(folder / "first.qcow2") and daemons(folder / "third.qcow2")
        client.execute("quit")
        assert running.end() == (0, "")
        assert not daemons(folder / "first.qcow2"), "its end is waited for"
        wait(lambda: not daemons(folder / "third.qcow2"), "end of the third's daemon")


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_daemon_ends_with_a_machine_that_is_killed(folder: Path) -> None:
    make_qcow2(folder / "disk.qcow2", 64 << 20)
    with Running(folder, "--disk", f"{folder / 'disk.qcow2'},format=qcow2") as running:
        running.client()
        assert daemons(folder / "disk.qcow2")
        running.process.kill()
        wait(lambda: not daemons(folder / "disk.qcow2"), "end of the daemon")


def daemons(image: Path) -> list[str]:
    """The processes that serve an image."""
    found = subprocess.run(["pgrep", "-f", f"filename={image}"], capture_output=True, text=True)
    return found.stdout.split()


def test_no_thread_of_a_confined_machine_can_do_what_an_intruder_would(folder: Path, victim: int) -> None:
    if not landlock.abi() or not seccomp.available():
        pytest.skip("this kernel lacks Landlock or seccomp")
    prey = folder / "prey"
    prey.mkdir()
    (prey / "secret").write_text("secret")
    reader, writer = os.pipe()
    attempts = f"{prey},{victim},{writer}"
    options = ("--sandbox", "require", "--trace-file", str(folder / "trace"))
    with Running(folder, *options, pass_fds=(writer,), ATTEMPTS=attempts) as running:
        os.close(writer)
        with open(reader) as report:
            found = {}
            for _ in range(3):
                told = json.loads(report.readline())
                found[told["thread"]] = told["outcomes"]
        running.client().execute("quit")
        assert running.end() == (0, "")
    assert found.keys() == {"vcpu", "loop", "trace"}
    for thread, outcomes in found.items():
        assert len(outcomes) > 45
        allowed = {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSED}
        assert not allowed, thread
    assert [path.name for path in prey.iterdir()] == ["secret"]
    assert (prey / "secret").read_text() == "secret"
    assert (prey / "secret").stat().st_mode & 0o777 != 0o777


def test_a_confined_machine_resets_answers_and_cleans_up(folder: Path) -> None:
    with Running(folder, "--trace-file", str(folder / "trace.jsonl")) as running:
        wait(lambda: running.lines() == 1, "line on the console")
        (folder / "vmlinux").unlink()  # as a build does
        (folder / "vmlinux").write_bytes(b"not a kernel")
        client = running.client()
        for count in (2, 3, 4):
            client.execute("system_reset")
            wait(lambda count=count: running.lines() == count, f"line {count}")
        status = client.execute("x-status")
        assert status["resets"] == 3
        assert status["memory"]["resident"] > 0
        assert status["sandbox"]["mode"] == "on"
        assert status["sandbox"]["landlock-abi"] == landlock.abi()
        assert status["sandbox"]["seccomp"] == seccomp.available()
        assert status["sandbox"]["no-new-privileges"]
        assert not [each for each in status["sandbox"]["missing"] if "threads" in each]
        task = Path(f"/proc/{running.process.pid}/task")
        for thread in task.iterdir():
            about = dict(
                line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line
            )
            assert about["NoNewPrivs"] == "1"
            assert about["Seccomp"] == "2" or not seccomp.available()
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(about[name], 16) == 0, name
        assert len(list(task.iterdir())) >= 3, "loop, vCPU and trace writer"
        for name in list(client.execute("query-commands")):
            if name["name"].startswith("query-") and name["name"] != "query-hv-balloon-status-report":
                client.execute(name["name"])
        for line in ("help", "info status", "info machine", "info qtree", "balloon 64"):
            client.execute("human-monitor-command", {"command-line": line})
        client.execute("stop")
        client.execute("cont")
        more = running.client()  # a second client is let in
        more.execute("x-trace-subscribe")
        more.execute("x-console-tail")
        client.execute("quit")
        assert running.end() == (0, "")
    assert not running.qmp.exists(), "removed by the sweeper"
    assert list((folder / "runtime" / "pyvmm").glob("tiny*")) == []
    assert "machine.reset" in (folder / "trace.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_confined_machine_ends_by_signals_and_leaves_no_socket(folder: Path, number: signal.Signals) -> None:
    with Running(folder) as running:
        wait(lambda: running.lines() == 1, "line on the console")
        running.process.send_signal(number)
        status, said = running.end()
        assert (status, said) == (-9 if number == signal.SIGKILL else 128 + number, "")
    wait(lambda: not running.qmp.exists(), "sweeper")


def test_off_confines_nothing(folder: Path) -> None:
    with Running(folder, "--sandbox", "off") as running:
        wait(lambda: running.lines() == 1, "line on the console")
        about = Path(f"/proc/{running.process.pid}/status").read_text()
        assert "Seccomp:\t0" in about
        assert "NoNewPrivs:\t0" in about
        client = running.client()
        assert client.execute("x-status")["sandbox"]["mode"] == "off"
        client.execute("quit")
        assert running.end() == (0, "")
    assert not running.qmp.exists()


def test_a_pseudo_terminal_takes_input_and_output(folder: Path) -> None:
    with Running(folder, "--console", "pty") as running:
        assert running.process.stderr is not None
        line = running.process.stderr.readline().decode()
        terminal = os.open(line.rsplit(" ", 1)[1].strip(), os.O_RDWR | os.O_NOCTTY)
        text = b""
        while TEXT.strip() not in text:
            text += os.read(terminal, 100)
        os.write(terminal, b"x")
        os.close(terminal)
        client = running.client()
        assert not [each for each in client.execute("x-status")["sandbox"]["missing"] if "threads" in each]
        client.execute("quit")
        assert running.end() == (0, "")


def test_the_monitor_is_there_before_the_guest(folder: Path) -> None:
    """Clients wait at a door that is not open yet."""
    with Running(folder) as running:
        wait(running.qmp.exists, "socket")
        with socket.socket(socket.AF_UNIX) as early:
            early.settimeout(TIMEOUT)
            early.connect(str(running.qmp))
            assert b"QMP" in early.recv(1000)
        client = running.client()
        try:
            client.execute("quit")
        except (Disconnected, HostError):
            pass
        running.end()
