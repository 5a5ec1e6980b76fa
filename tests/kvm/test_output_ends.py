"""A machine whose standard output is slow, stopped, full, closed or gone: `pyvmm run` and a tiny guest that prints.

The guest sends the letters A to Z again and again by polling, which nothing but holding its vCPU can stop, or stops
after COUNT of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.client.qmp import Client
from pyvmm.kvm import Kvm
from pyvmm.output import LIMIT
from pyvmm.unix_socket import is_listening
from tests.support.flooded import kernel
from tests.support.load import Lap

FOREVER = bytes.fromhex(
    "66 BA F8 03  B0 41"  # mov dx, 0x3f8; mov al, 'A'
    "EE FE C0  3C 5B 75 F9"  # out dx, al; inc al; cmp al, 'Z'+1; jne out
    "B0 41 EB F5"  # mov al, 'A'; jmp out
)
ROUNDS = 20_000
END_LIMIT = 60.0
"""Seconds until a machine that does not end counts as hung; an end takes some of them on a loaded machine."""
ALPHABET = bytes(range(65, 91))


def rounds(count: int) -> bytes:
    """A to Z `count` times, then a power-off by the reset port under --no-reboot."""
    body = bytes.fromhex("B9") + count.to_bytes(4, "little")  # mov ecx, count
    body += bytes.fromhex("66 BA F8 03  B0 41  EE FE C0 3C 5B 75 F9  E2 F1")  # ...; loop
    return body + bytes.fromhex("66 BA F9 0C  B0 06  EE  F4")  # mov dx, 0xcf9; mov al, 6; out dx, al


pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(kvm: Kvm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    started: list[subprocess.Popen[bytes]] = []

    def run(code: bytes, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
        (tmp_path / "kernel").write_bytes(kernel(code))
        words = ["run", "--kernel", str(tmp_path / "kernel"), "--entry", "pvh", "-m", "32M", "--no-reboot"]
        program = (
            "import sys; from pyvmm.cli import main; from pyvmm.launch import where;"
            "where.wants_emulated = lambda host: False;"
            "sys.exit(main.main())"
        )
        argv = [sys.executable, "-c", program, *words, "--name", "out", *options]
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams
        started.append(subprocess.Popen(argv, **streams))
        return started[-1]

    yield run
    for each in started:
        each.kill()
        each.wait()
        for pipe in (each.stdout, each.stderr):
            if pipe is not None:
                pipe.close()


def socket(tmp_path: Path) -> Path:
    return tmp_path / "pyvmm" / "out.sock"


def until(condition: Callable[[], bool], what: str, seconds: float = END_LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def ask(path: Path, machine: subprocess.Popen[bytes]) -> float:
    """Seconds until the monitor has answered, as `Lap` counts them."""
    with Lap(machine.pid) as lap, Client(path) as client:
        assert client.execute("query-status")["running"]
    return lap.seconds


def private_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * 4096


def test_a_reader_that_stops_holds_up_the_guest_alone(start: Start, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    machine = start(FOREVER, stdout=writer)
    os.close(writer)
    until(lambda: is_listening(socket(tmp_path)), "the monitor")
    with Client(socket(tmp_path)) as client:
        sent = lambda: client.execute("x-console-tail")["end"]  # noqa: E731
        until(lambda: sent() > LIMIT and sent() == (time.sleep(0.5), sent())[1], "the guest to be held")
        before = private_bytes(machine.pid)
        count = sent()
        time.sleep(1.5)
        assert sent() == count < 2 * LIMIT, "it is held, and not far past the limit"
        assert private_bytes(machine.pid) - before < 4 << 20
        assert ask(socket(tmp_path), machine) < 0.5
        found = bytearray()
        while len(found) < count + (1 << 20):
            found += os.read(reader, 1 << 16)
        assert bytes(found) == (ALPHABET * (len(found) // 26 + 1))[: len(found)], "nothing is lost, and it goes on"
        until(lambda: sent() - len(found) > 1 << 17, "more output than the pipe holds")
        client.execute("stop")
        client.execute("cont")
    with Lap(machine.pid) as lap:
        machine.send_signal(signal.SIGTERM)
        assert lap.wait(machine, END_LIMIT) == 128 + signal.SIGTERM
    assert lap.seconds < 5
    assert b"bytes were not read and are lost" in machine.communicate()[1]
    os.close(reader)


def test_output_at_the_end_waits_for_its_reader(start: Start) -> None:
    reader, writer = os.pipe()
    machine = start(rounds(ROUNDS), stdout=writer)
    os.close(writer)
    time.sleep(6)  # the guest is done long before
    with open(reader, "rb") as pipe:
        assert pipe.read() == ALPHABET * ROUNDS
    assert machine.wait(END_LIMIT) == 0
    assert machine.communicate()[1] == b""


def test_output_at_the_end_does_not_wait_after_a_signal(start: Start, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    machine = start(rounds(ROUNDS), stdout=writer)
    os.close(writer)
    until(lambda: is_listening(socket(tmp_path)), "the monitor")
    with Client(socket(tmp_path)) as client:
        until(lambda: client.execute("query-status")["status"] == "shutdown", "the guest's end")
    machine.send_signal(signal.SIGINT)
    assert machine.wait(END_LIMIT) == 130
    assert b"bytes were not read and are lost" in machine.communicate()[1]
    os.close(reader)


def test_a_reader_that_goes_ends_the_machine_as_sigpipe_would(start: Start) -> None:
    machine = start(FOREVER, stdout=subprocess.PIPE)
    assert machine.stdout is not None
    machine.stdout.read(100)
    machine.stdout.close()
    assert machine.wait(END_LIMIT) == 141
    assert machine.stderr is not None
    assert machine.stderr.read() == b"pyvmm: the reader of standard output has exited: the machine was ended\n"


@pytest.mark.parametrize(
    ("where", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_full_or_closed_output_ends_the_machine_with_a_line(start: Start, where: str, why: str) -> None:
    if where == ">&-":
        machine = start(FOREVER, preexec_fn=lambda: os.close(1))
    else:
        with open("/dev/full", "wb") as full:
            machine = start(FOREVER, stdout=full)
    assert machine.wait(END_LIMIT) == 1
    assert machine.communicate()[1].decode() == f"pyvmm: standard output: {why}: the machine was ended\n"


def test_a_non_blocking_output_gets_all_of_it(start: Start) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    machine = start(rounds(ROUNDS), stdout=writer)
    time.sleep(3)
    assert not os.get_blocking(writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == ALPHABET * ROUNDS
    assert machine.wait(END_LIMIT) == 0


def test_a_full_disk_under_a_console_file_is_reported_at_once_and_in_the_status(start: Start, tmp_path: Path) -> None:
    machine = start(rounds(1000), "--console", "/dev/full")
    assert machine.wait(END_LIMIT) == 1
    assert machine.communicate()[1] == b"pyvmm: console /dev/full: No space left on device; the rest is lost\n"


def test_a_full_disk_under_a_trace_is_reported_and_in_the_status(start: Start) -> None:
    machine = start(rounds(10), "--trace-file", "/dev/full", stdout=subprocess.DEVNULL)
    assert machine.wait(END_LIMIT) == 1
    assert machine.communicate()[1] == b"pyvmm: trace file /dev/full: No space left on device; the rest is lost\n"


def test_unread_traces_do_not_stop_the_machine(start: Start) -> None:
    reader, writer = os.pipe()
    machine = start(rounds(ROUNDS), "--trace", "*", stdout=subprocess.DEVNULL, stderr=writer)
    os.close(writer)
    assert machine.wait(END_LIMIT) == 0
    os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_so(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    machine = start(FOREVER, "--console", "none", preexec_fn=ignore)
    until(lambda: is_listening(socket(tmp_path)), "the monitor")
    ask(socket(tmp_path), machine)  # the first answer waits until the machine has started
    machine.send_signal(number)
    assert ask(socket(tmp_path), machine) < 0.5
    machine.send_signal(signal.SIGTERM)
    assert machine.wait(END_LIMIT) == 143


@pytest.mark.parametrize("input", ["/dev/null", "/proc/self/mem", None])
def test_any_input_will_do(start: Start, input: str | None) -> None:
    if input is None:
        machine = start(rounds(100), stdin=None, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(0))
    else:
        descriptor = os.open(input, os.O_RDONLY)
        machine = start(rounds(100), stdin=descriptor, stdout=subprocess.PIPE)
        os.close(descriptor)
    assert machine.communicate(timeout=20) == (ALPHABET * 100, b"")
    assert machine.returncode == 0
