"""`pyvmm run` as a job of an interactive shell, in the emulated host: background, foreground, size, stop, end."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.host.qemu import PROGRAM
from tests.support.boot_hosts import lacks_qemu

pytestmark = [pytest.mark.boot, pytest.mark.skipif(lacks_qemu(), reason=f"needs {PROGRAM}")]
PYVMM = f"{sys.executable} -m pyvmm"
LIMIT = 180.0  # seconds; the first start of all makes and saves the host


class Bash:
    """An interactive shell on a terminal of 40 by 100, with its machines in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"PS1": "ready$ ", "TERM": "dumb", "XDG_RUNTIME_DIR": str(folder)}
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        termios.tcsetwinsize(self.fd, (40, 100))
        self.until(lambda: "ready$" in self.seen, "a prompt")

    def until(self, done: Callable[[], bool], what: str, seconds: float = LIMIT) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what}: {self.seen[-2000:]!r}"
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")

    def until_with(self, done: Callable[[], bool], what: str, *, typing: str) -> None:
        """Type `typing` each second until `done`: what comes before a program reads is the shell's."""
        end = time.monotonic() + LIMIT
        while not done():
            assert time.monotonic() < end, f"{what}: {self.seen[-2000:]!r}"
            os.write(self.fd, typing.encode())
            with contextlib.suppress(AssertionError):
                self.until(done, what, 1.0)

    def send(self, text: str) -> None:
        self.seen = ""
        os.write(self.fd, text.encode())

    def says(self, line: str, answer: str) -> None:
        """Type `line` and wait for `answer`."""
        self.send(f"{line}\r")
        self.until(lambda: answer in self.seen.replace(line, ""), line)

    def is_cooked(self) -> None:
        self.says("stty -a | grep -o '[-]*isig'; echo o''ver", "over")
        assert "-isig" not in self.seen


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    made = Bash(tmp_path)
    yield made
    os.kill(made.pid, signal.SIGKILL)
    os.close(made.fd)
    os.waitpid(made.pid, 0)


def test_a_machine_in_the_background_runs_and_in_the_foreground_has_the_terminal_and_its_size(bash: Bash) -> None:
    bash.send(f"{PYVMM} run --host emulated --name job &\r")
    bash.until(lambda: "guest:" in bash.seen, "the guest's prompt")
    bash.says("jobs", "Running")
    bash.is_cooked()
    bash.send("fg\r")
    bash.until(lambda: "run --host" in bash.seen, "the job")
    time.sleep(1)
    bash.says("stty size", "40 100")
    termios.tcsetwinsize(bash.fd, (33, 77))
    time.sleep(2)
    bash.says("stty size", "33 77")
    bash.says("printf %s%s be gun; cat", "begun")
    bash.until_with(lambda: "guest:" in bash.seen, "Ctrl-C is the guest's", typing="\x03")
    bash.send("\x01x")
    bash.until(lambda: "ready$" in bash.seen, "the shell")
    bash.says("echo status $?", "status 0")
    bash.is_cooked()


def test_ctrl_z_stops_a_command_in_a_guest_and_fg_goes_on(bash: Bash) -> None:
    bash.send(f"{PYVMM} run --host emulated -- 'echo up; sleep 4; echo over'\r")
    bash.until(lambda: "up\r" in bash.seen, "the guest")
    bash.send("\x1a")
    bash.until(lambda: "Stopped" in bash.seen, "the shell to notice")
    bash.is_cooked()
    bash.says("fg", "over\r")
    bash.until(lambda: "ready$" in bash.seen, "the shell")
    bash.says("echo status $?", "status 0")
