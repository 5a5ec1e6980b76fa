"""`pyvmm step` over the built-in guest, as a user calls it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyvmm
from pyvmm.client.qmp import Client
from pyvmm.kvm import Kvm

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

ROOT = Path(pyvmm.__file__).parents[1]
LIMIT = 60.0


def step(*words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", "step", *words],
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(autouse=True)
def _needs_kvm(kvm: Kvm) -> None:
    """Skip where there is no KVM."""


def headings(output: str) -> list[str]:
    return [" ".join(line.split()[1:-2]) for line in output.splitlines() if line.startswith("#")]


def test_messages_come_one_by_one_with_their_fields_and_our_source() -> None:
    done = step("--script", "m m 2m")
    assert (done.returncode, done.stderr) == (0, "")
    assert headings(done.stdout) == [
        "guest -> host message INITIATE_CONTACT",
        "host -> guest message VERSION_RESPONSE",
        "host -> guest message OFFER about hv-balloon",
    ]
    assert "version        0x40000    WIN10" in done.stdout
    file, line = re.findall(r"handled by (\S+):(\d+)", done.stdout)[0]
    assert "def _initiate_contact(" in (ROOT / file).read_text().splitlines()[int(line) - 1]
    assert "sent by pyvmm/vmbus/server.py:" in done.stdout
    assert "vmbus.connection_state disconnected -> contacted" in done.stdout
    assert "\x1b" not in done.stdout


def test_each_kind_stops_at_its_own() -> None:
    done = step("--script", "e h p i n")
    assert done.returncode == 0
    first, second, third, fourth, fifth = headings(done.stdout)
    assert first == "vcpu 0 exit Wrmsr of GUEST_OS_ID"
    assert second == "vcpu 0 hypercall POST_MESSAGE (INITIATE_CONTACT)"
    assert third == "guest -> host packet VERSION_REQUEST on hv-balloon (channel 1)"
    assert fourth.startswith("host -> guest event flag 1 of VP 0: hv-balloon")
    assert fifth


def test_packets_of_the_balloon_come_in_the_order_of_the_protocol() -> None:
    done = step("--script", "9p")
    assert headings(done.stdout) == ["guest -> host packet UNBALLOON_RESPONSE on hv-balloon (channel 1)"] or (
        headings(done.stdout)[0].split()[-4] in ("UNBALLOON_REQUEST", "UNBALLOON_RESPONSE", "BALLOON_RESPONSE")
    )


def test_it_runs_to_the_end_of_the_guest() -> None:
    done = step("--script", "c")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the guest powered off")


def test_trace_events_and_looks() -> None:
    done = step("--script", "t *balloon_state_change; r; d 0x1000000 16; d 0xffffffffff; w; s; l; ?")
    assert done.returncode == 0
    assert "trace event hv_balloon_state_change -> S_VERSION" in done.stdout
    assert "rip 0x" in done.stdout
    assert "0x01000000  bd" in done.stdout
    assert "the next packet" in done.stdout


def test_words_come_from_a_pipe_too_and_a_wrong_one_ends_it() -> None:
    done = step(input="m\nm\n")
    assert (done.returncode, len(headings(done.stdout))) == (0, 2)
    done = step(input="m\nnonsense\nm\n")
    assert (done.returncode, len(headings(done.stdout))) == (2, 1)
    assert "no command 'nonsense': `?` lists them" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--script", "z"], "--script: no command 'z'"),
        (["--script", "t nothing.like"], "--script: no trace event matches 'nothing.like'"),
        (["--tiny", "-m", "1G"], "--tiny does not go with --memory"),
        (["--gdb"], "--gdb does not go with step"),
        (["--fault", "nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], expected: str) -> None:
    done = step(*words)
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_another_command_sees_the_same_moment_and_may_end_it(tmp_path: Path) -> None:
    socket = tmp_path / "qmp"
    words = [sys.executable, "-m", "pyvmm", "step", "--qmp", str(socket)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"h\n")
        process.stdin.flush()
        line = b""
        while not line.startswith(b"  vmbus "):
            line = process.stdout.readline()
            assert line
        with Client(socket) as client:
            assert client.execute("query-status")["status"] == "debug"
            assert client.execute("x-query-map")["special"]
            client.execute("quit")
        _out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, b"")


def test_a_fault_is_seen_step_by_step() -> None:
    done = step("--fault", "contact-refused", "--script", "2m")
    assert "supported      0" in done.stdout


@pytest.mark.parametrize("cpus", ["2"])
def test_two_vcpus_stop_together(cpus: str) -> None:
    done = step("--tiny", "--cpus", cpus, "--script", "m w")
    assert done.returncode == 0
    assert "vcpu 1  waits for INIT and SIPI" in done.stdout


def test_a_terminal_gets_a_prompt_and_colours() -> None:
    child, master = pty.fork()
    if child == 0:  # pragma: no cover
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-m", "pyvmm", "step"])
    try:
        _read_until(master, b"(step) ")
        os.write(master, b"m\n")
        shown = _read_until(master, b"(step) ")
        assert b"INITIATE_CONTACT" in shown
        assert b"\x1b[36m" in shown
        os.write(master, b"q\n")
        _read_until(master, b"never")
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(master)


def _read_until(fd: int, text: bytes) -> bytes:
    """Read up to a text, or the end."""
    until, found = time.monotonic() + LIMIT, b""
    while text not in found:
        assert time.monotonic() < until, found
        if select.select([fd], [], [], 0.5)[0]:
            try:
                found += os.read(fd, 1)
            except OSError:  # the program has ended
                break
    return found
