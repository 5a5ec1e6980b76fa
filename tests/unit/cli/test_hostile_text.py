"""Control characters from a guest, a monitor or a file: no command passes them on to a terminal."""

from __future__ import annotations

import ast
import os
import pty
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import pyvmm.cli
from pyvmm import trace
from pyvmm.cli import output
from pyvmm.cli.main import main
from pyvmm.control import hmp
from pyvmm.errors import HostError
from pyvmm.hyperv.crash import CrashReport
from pyvmm.launch.attended import report
from pyvmm.launch.terminal import MonitorPrompt
from pyvmm.machine import Outcome
from pyvmm.trace import event
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine

HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\x7f"
seen = event("hostile.seen", "{what}")


def is_safe(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


def on_terminal(*arguments: str) -> str:
    """What a command writes to a terminal, without the CR that the terminal adds."""
    parent, child = pty.openpty()
    saved, stdout = os.dup(1), sys.stdout
    os.dup2(child, 1)
    sys.stdout = os.fdopen(os.dup(child), "w", encoding="utf-8")
    try:
        main(list(arguments))
        sys.stdout.flush()
    finally:
        sys.stdout.close()
        sys.stdout = stdout
        os.dup2(saved, 1)
        os.close(saved)
        os.close(child)
    written = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        written += data
    os.close(parent)
    return written.decode().replace("\r\n", "\n")


def test_log_on_a_terminal_is_escaped_and_in_a_pipe_is_not(machine: FakeMachine, pyvmm: Run) -> None:
    machine.console = f"one {HOSTILE}\r\ntwo".encode()
    assert is_safe(on_terminal("log", "web"))
    assert on_terminal("log", "web") == "one \\x1b]0;title\\x07\\x9b2J\\u202e\\x7f\ntwo"
    assert pyvmm("log", "web").out == f"one {HOSTILE}\ntwo"


def test_log_that_follows_a_console_on_a_terminal_is_escaped(machine: FakeMachine) -> None:
    machine.console = b"one\r"

    def more() -> None:
        machine.console += b"\ntwo\x1b[2J\n"
        threading.Timer(0.3, machine.quit).start()

    threading.Timer(0.3, more).start()
    assert on_terminal("log", "web", "--follow") == "one\ntwo\\x1b[2J\n"


@pytest.mark.parametrize("words", [["status"], ["devices"], ["ps"], ["top", "--once"], ["balloon"]])
def test_what_a_monitor_says_is_escaped(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    said = FakeMachine.describe(machine)
    channel = {"relid": 1, "name": HOSTILE, "state": HOSTILE, "broken": HOSTILE}
    hostile: dict[str, Any] = {
        "name": f"web{HOSTILE}",
        "engine": HOSTILE,
        "balloon": {"state": HOSTILE, "last-result": HOSTILE},
        "vmbus": [channel],
        "exits": {HOSTILE: {HOSTILE: 3}},
        HOSTILE: HOSTILE,
    }
    monkeypatch.setattr(machine, "describe", lambda: said | hostile)
    monkeypatch.setattr(machine, "info_vmbus", lambda: [channel])
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    shown = on_terminal(*words)
    assert "web" in shown or "DEVICE" in shown
    for evil in ("\x1b]", "\x07", "\x9b", "\u202e", "\x7f"):
        assert evil not in shown


def test_a_monitors_error_is_escaped(machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> dict[str, Any]:
        raise HostError(HOSTILE)

    monkeypatch.setattr(machine, "balloon_set", refuse)
    found = pyvmm("balloon", "256M")
    assert found.status == 1
    assert is_safe(found.err)


def test_wait_escapes_a_panics_text_and_an_events_members(machine: FakeMachine, pyvmm: Run) -> None:
    def panic() -> None:
        machine.emit("GUEST_PANICKED", action="run", **{"x-text": f"Kernel panic {HOSTILE}"})
        machine.emit("DEVICE_DELETED", device=HOSTILE, path=f"/a\n{HOSTILE}")

    threading.Timer(0.3, panic).start()
    found = pyvmm("wait", "web", "--event", "DEVICE_DELETED", "--timeout", "20")
    assert is_safe(found.out + found.err)
    assert found.out.count("\n") == 1
    assert "Kernel panic \\x1b" in found.err


def test_trace_events_with_a_guests_values_are_one_line_each(machine: FakeMachine, pyvmm: Run) -> None:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            seen(f"x\n{HOSTILE}")

    threading.Thread(target=run, daemon=True).start()
    found = pyvmm("trace", "web", "hostile.*", "--count", "2", "--timeout", "20")
    stop.set()
    assert found.out.count("\n") == 2
    assert is_safe(found.out)


def test_traces_on_stderr_are_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    sink = trace.TextSink(sys.stderr)
    trace.subscribe("hostile.seen", sink)
    seen(f"x\n{HOSTILE}")
    trace.unsubscribe(sink)
    err = capsys.readouterr().err
    assert err.endswith("\r\n")
    assert err[:-2].isprintable()


def test_a_panics_text_is_escaped_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    crash = CrashReport((1, 2, 3, 4, 5), f"Kernel panic {HOSTILE}\nCall Trace:\r\n")
    assert report(Outcome("panic", crash.summary(), crash)) == 255
    found = capsys.readouterr()
    assert is_safe(found.out + found.err)
    assert "Call Trace" in found.err


def test_the_monitors_prompt_escapes_what_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr(machine, "info_vmbus", lambda: [{"relid": 1, "name": HOSTILE, "state": HOSTILE}])
    prompt = MonitorPrompt(lambda line: hmp.execute(machine, line))
    shown = prompt.feed(b"info vmbus\r").decode()
    assert is_safe(shown.replace("\r\n", "\n"))


def test_doctors_findings_tables_and_fields_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.finding("ok", HOSTILE, HOSTILE, HOSTILE)
    output.table((HOSTILE,), [(f"{HOSTILE}\n",)])
    output.fields([(HOSTILE, f"{HOSTILE}\n")])
    out = capsys.readouterr().out
    assert is_safe(out)
    assert out.count("\n") == 5


def test_nothing_but_the_output_module_prints_a_line_of_text() -> None:
    """A new command's `click.echo` would pass on whatever a guest says. Exceptions print fixed control sequences,
    scripts and documents of ours, or clean the text themselves.
    """
    allowed = {"output.py", "main.py", "completion.py", "run.py", "log.py", "where.py", "attended.py", "consoles.py"}
    allowed |= {"trace_sinks.py", "tour.py", "tour_show.py"}
    found = []
    folder = Path(pyvmm.cli.__file__).parent
    for file in folder.rglob("*.py"):
        if file.name in allowed:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "click.secho", "print"):
                found.append(f"{file.name}: {ast.unparse(node)}")
    assert not found
