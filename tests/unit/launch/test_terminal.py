from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from pyvmm.foreground import raw_terminal
from pyvmm.launch.terminal import ConsoleInput, ConsoleKeys, End, Help, MonitorPrompt, Toggle, Typed


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"ls\r", [Typed(b"ls\r")]),
        (b"\x01x", [End()]),
        (b"\x01c", [Toggle()]),
        (b"\x01h\x01?", [Help(), Help()]),
        (b"\x01a", [Typed(b"\x01")]),
        (b"\x01\x01", [Typed(b"\x01")]),
        (b"\x01\x01x", [Typed(b"\x01"), Typed(b"x")]),
        (b"a\x01qb", [Typed(b"aqb")]),
        (b"a\x01cb", [Typed(b"a"), Toggle(), Typed(b"b")]),
        (b"\x03\x1a\xff", [Typed(b"\x03\x1a\xff")]),
    ],
)
def test_keys_mean(typed: bytes, keys: list[object]) -> None:
    assert ConsoleKeys().feed(typed) == keys


def test_an_escape_may_be_split_between_reads() -> None:
    keys = ConsoleKeys()
    assert keys.feed(b"a\x01") == [Typed(b"a")]
    assert keys.feed(b"x") == [End()]


def prompt(lines: list[str], output: str = "") -> MonitorPrompt:
    def execute(line: str) -> str:
        lines.append(line)
        return output

    return MonitorPrompt(execute, lambda: ["balloon", "info balloon", "info status", "quit"])


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (b"balloon 256M\r", "balloon 256M"),
        (b"balloonx\x7f 1\r", "balloon 1"),
        (b"\x7f\x7fq\r", "q"),
        (b"abc\x15quit\r", "quit"),
        (b"abc\x03quit\r", "quit"),
        (b"info nope\x17status\r", "info status"),
        (b"q\t\r", "quit"),
        (b"in\tb\t\r", "info balloon"),
        (b"\x1b[Dq\x1bOCx\r", "qx"),
        (b"\x00\x05q\r", "q"),
        ("grün\x7f\x7fß\r".encode(), "grß"),
    ],
)
def test_the_prompt_edits_a_line(typed: bytes, line: str) -> None:
    for chunks in ([typed], [bytes([byte]) for byte in typed if byte != 0x1B] if 0x1B not in typed else [typed]):
        lines: list[str] = []
        editor = prompt(lines)
        for chunk in chunks:
            editor.feed(chunk)
        assert lines == [line]


def test_output_has_carriage_returns() -> None:
    assert prompt([], "a\nb\n").feed(b"x\r") == b"x\r\na\r\nb\r\n(pyvmm) "


def test_enter_as_cr_lf_counts_once() -> None:
    lines: list[str] = []
    assert prompt(lines).feed(b"x\r\n").count(b"(pyvmm)") == 1


def test_arrows_recall_earlier_lines() -> None:
    lines: list[str] = []
    prompt(lines).feed(b"one\rtwo\r\x1b[A\x1b[A\x1b[B\x1b[A\r\x1b[A\x1b[B\x1b[B\r")
    assert lines == ["one", "two", "one"]


def test_tab_shows_what_fits() -> None:
    assert b"info balloon  info status" in prompt([]).feed(b"info \t")


def test_backspace_wipes_the_character_on_the_screen() -> None:
    assert prompt([]).feed(b"ab\x7f") == b"ab\b \b"


def test_a_line_does_not_grow_without_end() -> None:
    lines: list[str] = []
    prompt(lines).feed(b"x" * 100_000 + b"\r")
    assert len(lines[0]) == 1024


def test_console_input_goes_to_the_guest_or_the_monitor() -> None:
    sent, shown, lines = bytearray(), bytearray(), []
    ended: list[bool] = []
    console = ConsoleInput(sent.extend, shown.extend, lambda: ended.append(True), prompt(lines))
    console.feed(b"ls\r\x01cquit\r\x01cpwd\r\x01h\x01x")
    assert bytes(sent) == b"ls\rpwd\r"
    assert lines == ["quit"]
    assert b"Ctrl-A x  end the machine\r\n" in shown
    assert ended == [True]


def test_without_a_monitor_the_toggle_does_nothing() -> None:
    sent = bytearray()
    ConsoleInput(sent.extend, lambda _: None, lambda: None).feed(b"\x01cx")
    assert bytes(sent) == b"x"


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def echoes(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_the_terminal_is_raw_inside_and_restored_after(terminal: int) -> None:
    before = termios.tcgetattr(terminal)
    with raw_terminal(terminal):
        assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(terminal) == before


def test_the_terminal_is_restored_when_the_block_fails(terminal: int) -> None:
    with pytest.raises(ZeroDivisionError), raw_terminal(terminal):
        raise ZeroDivisionError
    assert echoes(terminal)


def test_handlers_are_as_before(terminal: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    with raw_terminal(terminal):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_pipe_is_left_alone() -> None:
    reader, writer = os.pipe()
    with raw_terminal(reader):
        pass
    os.close(reader)
    os.close(writer)


ENDS = {
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
    "SIGHUP": "os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "sys.exit": "sys.exit(3)",
    "exit in a thread's absence": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); \
os.kill(os.getpid(), signal.SIGTERM)",
    "never left": "pass\nkeep = raw_terminal(0); keep.__enter__(); sys.exit(0)",
}


@pytest.mark.parametrize("how", ENDS)
def test_the_terminal_is_restored_however_the_process_ends(terminal: int, how: str) -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup and some CIs have it ignored
        f"from pyvmm.foreground import raw_terminal\nwith raw_terminal(0):\n {ENDS[how]}"
    )
    done = subprocess.run([sys.executable, "-c", code], stdin=terminal, stderr=subprocess.PIPE, timeout=20)
    assert echoes(terminal), done
    if how in ("SIGTERM", "SIGHUP"):
        assert done.returncode == -getattr(signal, how)
