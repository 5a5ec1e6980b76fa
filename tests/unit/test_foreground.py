"""A process in raw mode under a real interactive bash: background, foreground, stop, continue, signals, hang-up."""

from __future__ import annotations

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

from pyvmm.foreground import WINDOW_LIMIT, window_of

PROGRAM = """
import os, select, signal, sys, time
from pyvmm.foreground import raw_terminal
log = open(sys.argv[1], "a", buffering=1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with raw_terminal(0) as terminal:
    print("pid", os.getpid(), file=log)
    held = False
    while True:
        if terminal.acquire() != held:
            held = not held
            print("held" if held else "not held", file=log)
        if not held:
            time.sleep(0.02)
        elif select.select([0], [], [], 0.02)[0]:
            key = os.read(0, 1).decode()
            print("key", key, file=log)
            if key == "q":
                break
"""


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.log.touch()
        (folder / "program").write_text(PROGRAM)
        self.program = f"{sys.executable} {folder}/program {self.log}"
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"PS1": "ready$ ", "TERM": "dumb", "PYTHONPATH": str(Path(__file__).parents[2])}
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def run(self, line: str) -> str:
        """What the shell shows for a line that ends at once."""
        mark = f"mark{time.monotonic_ns()}"
        self.send(f"{line}; echo {mark[:4]}''{mark[4:]}\r")
        self.until(lambda: mark in self.seen, line)
        return self.seen.split(mark)[0].split("\n", 1)[-1]

    def until(self, done: Callable[[], bool], what: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what}: {self.seen!r} {self.log.read_text()!r}"
            if select.select([self.fd], [], [], 0.05)[0]:
                self.seen += os.read(self.fd, 4096).decode()

    def logged(self, *lines: str) -> None:
        """Wait until the program has said so since the last call."""
        before = getattr(self, "_read", 0)

        def done() -> bool:
            return all(line in self.log.read_text()[before:].splitlines() for line in lines)

        self.until(done, f"{lines}")
        self._read = len(self.log.read_text())

    @property
    def child(self) -> int:
        return int(self.log.read_text().split()[1])

    @property
    def cooked(self) -> bool:
        """Whether lines are edited by the terminal, as for a program that a shell starts. (bash itself edits raw.)"""
        return bool(termios.tcgetattr(self.fd)[3] & termios.ISIG)

    def close(self) -> None:
        for pid in (self.pid, *([self.child] if self.log.read_text() else [])):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    made.until(lambda: "ready$" in made.seen, "a prompt")
    yield made
    made.close()


def test_in_the_background_it_runs_and_leaves_the_terminal_to_the_shell(shell: Shell) -> None:
    shell.run(f"{shell.program} & sleep 1")
    assert "Running" in shell.run("jobs")
    assert "icanon" in shell.run("stty -a") and "-icanon" not in shell.run("stty -a")
    assert "key" not in shell.log.read_text(), "what was typed was the shell's"
    assert "held" not in shell.log.read_text()


def test_brought_to_the_foreground_it_takes_the_terminal_and_gives_it_back_at_its_end(shell: Shell) -> None:
    shell.run(f"{shell.program} & sleep 1")
    shell.send("fg\r")
    shell.logged("held")
    assert not shell.cooked
    shell.send("x\x03\x1a")
    shell.logged("key x", "key \x03", "key \x1a")
    shell.send("q")
    shell.until(lambda: shell.cooked, "the terminal given back")
    assert "Running" not in shell.run("jobs")


def test_stopped_it_gives_the_terminal_back_and_takes_it_again_when_continued(shell: Shell) -> None:
    shell.send(f"{shell.program}\r")
    shell.logged("held")
    os.kill(shell.child, signal.SIGTSTP)
    shell.until(lambda: "Stopped" in shell.seen, "the shell to notice")
    assert "-isig" not in shell.run("stty -a")
    shell.send("fg\r")
    shell.until(lambda: not shell.cooked, "raw mode again")
    shell.send("y")
    shell.logged("key y")
    os.kill(shell.child, signal.SIGTSTP)
    shell.until(lambda: shell.seen.count("Stopped") >= 2, "the shell to notice")
    shell.run("bg; sleep 0.5")
    shell.logged("not held")
    assert "Running" in shell.run("jobs")
    assert "-isig" not in shell.run("stty -a")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_restores_the_terminal_before_the_end(shell: Shell, number: signal.Signals) -> None:
    shell.send(f"{shell.program}\r")
    shell.logged("held")
    os.kill(shell.child, number)
    shell.until(lambda: shell.cooked, "the terminal given back")
    assert str(7 if number == signal.SIGTERM else 128 + number) in shell.run("echo $?")


def test_even_killed_and_stopped_outright_it_leaves_a_shell_that_works(shell: Shell) -> None:
    shell.send(f"{shell.program}\r")
    shell.logged("held")
    os.kill(shell.child, signal.SIGSTOP)
    shell.until(lambda: "Stopped" in shell.seen, "the shell to notice")
    assert "-isig" not in shell.run("stty -a")
    shell.send("fg\r")
    shell.until(lambda: not shell.cooked, "raw mode again")
    os.kill(shell.child, signal.SIGKILL)
    shell.until(lambda: "Killed" in shell.seen, "the shell to notice")
    assert "-isig" not in shell.run("stty -a")


def test_a_terminal_that_hangs_up_ends_it(shell: Shell) -> None:
    shell.send(f"{shell.program}\r")
    shell.logged("held")
    child = shell.child
    os.kill(shell.pid, signal.SIGKILL)  # the session's leader: its terminal's foreground gets SIGHUP
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        assert time.monotonic() < end, "it lives on"


@pytest.mark.parametrize(
    ("rows", "columns", "known"),
    [(24, 80, True), (0, 0, False), (0, 80, False), (WINDOW_LIMIT + 1, 80, False), (65535, 65535, False)],
)
def test_a_size_that_cannot_be_is_none(rows: int, columns: int, known: bool) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (rows, columns))
    assert window_of(slave) == ((rows, columns) if known else None)
    os.close(slave)
    os.close(master)


def test_a_pipe_has_no_size() -> None:
    reader, writer = os.pipe()
    assert window_of(reader) is None
    os.close(reader)
    os.close(writer)
