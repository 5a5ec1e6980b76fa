"""The outer side of a command and the agent, without a host in between: what a shell sees of such a command.

The agent is a process of this computer, joined to the client by a socket pair instead of QEMU's port.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, socket, sys
from pyvmm.launch.where import final_status_emulated
from pyvmm.host.agent import Agent
from pyvmm.host.client import Request, run_command
from pyvmm.host.commands import shell_status
from pyvmm.host.endpoint import Endpoint
from pyvmm.host.zygote import Zygote
near, far = socket.socketpair()
if os.fork() == 0:
    os.setsid()
    near.close()
    os.sync = lambda: None
    try:
        Agent(far.fileno(), Zygote("", "")).serve()
    finally:
        os._exit(0)
far.close()
request = Request(sys.argv[2:], input=sys.argv[1] == "input", live=sys.argv[1] == "live")
status = run_command(Endpoint(near.fileno()), request)
sys.exit(final_status_emulated(request.outputs, shell_status(status), ended=": the machine was ended"))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program").write_text(PROGRAM)
    return f"env PYTHONPATH={Path(__file__).parents[3]} {sys.executable} {tmp_path}/program"


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)


def test_a_reader_that_goes_is_sigpipe_for_the_command(program: str) -> None:
    done = shell(f"{program} none seq 1000000 | head -1; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.returncode) == ("1\n141\n", 0)
    assert done.stderr == "pyvmm: the reader of standard output has exited: the machine was ended\n"


@pytest.mark.parametrize("count", [1, 1_000_000])
def test_a_full_disk_is_one_line_and_status_1(program: str, count: int) -> None:
    done = shell(f"{program} none seq {count} >/dev/full")
    assert done.returncode == 1
    why = ": the machine was ended" if count > 1 else "; the rest is lost"
    assert done.stderr.splitlines()[-1] == f"pyvmm: standard output: No space left on device{why}"


def test_a_slow_reader_gets_all(program: str) -> None:
    done = shell(f"{program} none seq 200000 | (sleep 2; tail -1)")
    assert (done.stdout, done.stderr) == ("200000\n", "")


def test_input_that_the_command_does_not_read_is_left_alone(program: str) -> None:
    done = shell(f"printf 'a\\nb\\n' | while read word; do echo $word; {program} none cat; done")
    assert done.stdout == "a\nb\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_reader_that_stops_does_not_outlast_a_signal(program: str, number: signal.Signals) -> None:
    reader, writer = os.pipe()
    started = subprocess.Popen([*program.split(), "none", "yes"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    time.sleep(2)  # until it is full
    started.send_signal(number)
    began = time.monotonic()
    _, said = started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert time.monotonic() - began < 8
    assert b"bytes were not read and are lost" in said
    os.close(reader)


def test_a_reader_that_stops_does_not_outlast_a_time_limit(program: str) -> None:
    reader, writer = os.pipe()
    words = ["none", "timeout", "1", "yes"]  # ends with the status that `pyvmm run --timeout` has
    started = subprocess.Popen([*program.split(), *words], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 124
    assert b"bytes were not read and are lost" in said
    os.close(reader)


class Bash:
    """An interactive shell on a terminal of its own."""

    def __init__(self) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"PS1": "ready$ ", "TERM": "dumb"}
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.until(lambda: "ready$" in self.seen, "a prompt")

    def send(self, text: str) -> None:
        self.seen = ""
        os.write(self.fd, text.encode())

    def until(self, done: Callable[[], bool], what: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what}: {self.seen!r}"
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 4096).decode()

    def says(self, line: str, answer: str) -> None:
        self.send(f"{line}\r")
        self.until(lambda: answer in self.seen.replace(line, ""), line)


@pytest.fixture
def bash() -> Iterator[Bash]:
    made = Bash()
    yield made
    os.kill(made.pid, signal.SIGKILL)
    os.close(made.fd)
    os.waitpid(made.pid, 0)


def test_in_the_background_it_is_not_stopped(bash: Bash, program: str) -> None:
    bash.says(f"{program} input sleep 60 & sleep 2; jobs", "Running")
    bash.says("echo one''two", "onetwo")
    bash.says("kill %1; wait %1; echo status $?", "status 143")


def test_ctrl_z_stops_a_command_without_input_and_fg_continues_it(bash: Bash, program: str) -> None:
    bash.send(f"{program} none sh -c 'echo up; sleep 3; echo over'\r")
    bash.until(lambda: "up\r" in bash.seen, "its start")
    bash.send("\x1a")
    bash.until(lambda: "Stopped" in bash.seen, "the shell to notice")
    bash.says("fg", "over")


def test_a_command_with_a_terminal_goes_raw_and_back(bash: Bash, program: str) -> None:
    bash.send(f"{program} input sh -c 'stty size; read word; echo got $word'\r")
    bash.until(lambda: "0 0\r" in bash.seen or "24 80\r" in bash.seen, "its start")
    bash.send("xyz\r")
    bash.until(lambda: "got xyz" in bash.seen and bash.seen.endswith("ready$ "), "the answer, and the shell")
    bash.says("stty -a | grep -o '[-]*isig'", "isig")
    assert "-isig" not in bash.seen


def test_a_live_command_has_a_terminal_for_its_output_and_leaves_ours_alone(bash: Bash, program: str) -> None:
    bash.says("stty cols 99", "ready$")
    bash.send(f"{program} live sh -c 'for n in 0 1 2; do test -t $n && echo is-$n; done; stty size <&1; sleep 2'\r")
    bash.until(lambda: " 99\r" in bash.seen, "its start")
    assert [n for n in "012" if f"is-{n}\r" in bash.seen] == ["1", "2"]
    os.write(bash.fd, b"echo type''ahead\r")
    bash.until(lambda: "typeahead" in bash.seen, "what was typed meanwhile")


def test_ctrl_c_ends_a_live_command(bash: Bash, program: str) -> None:
    bash.send(f"{program} live sh -c 'echo up; exec sleep 60'\r")
    bash.until(lambda: "up\r" in bash.seen, "its start")
    bash.send("\x03")
    bash.until(lambda: "ready$" in bash.seen, "a prompt")
    bash.says("echo status $?", "status 130")


def test_a_live_commands_piped_output_is_no_terminal(bash: Bash, program: str) -> None:
    bash.says(f"{program} live sh -c 'test -t 1 || echo pi''ped; test -t 2 && echo is-2 >&2' | cat", "is-2")
    bash.until(lambda: "piped\r" in bash.seen, "the pipe's line")


def test_one_that_stops_itself_stops_us(bash: Bash, program: str) -> None:
    bash.send(f"{program} input sh -c 'echo up; kill -STOP $$; echo over'\r")
    bash.until(lambda: "Stopped" in bash.seen, "the shell to notice")
    bash.says("stty -a | grep -o '[-]*isig'", "isig")
    assert "-isig" not in bash.seen
    bash.says("fg", "over")
