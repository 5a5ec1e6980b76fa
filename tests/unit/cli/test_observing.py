"""trace, report, log, wait, kill, devices: the commands that look closer."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.commands import kill, wait
from pyvmm.client import registry
from pyvmm.errors import ConfigError
from pyvmm.launch.trace_sinks import TraceSettings, traces
from pyvmm.trace import event
from tests.support.command_line import Run
from tests.support.fake_machine import MIB, FakeMachine, serving

CAPTURES = Path(__file__).parents[1] / "analysis" / "captures"
seen = event("observing.seen", "{what}")


def keep_tracing() -> threading.Event:
    """Trace something again and again until the event is set."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            seen("it")

    threading.Thread(target=run, daemon=True).start()
    return stop


@pytest.mark.parametrize(
    "words",
    [["web", "observing.*"], ["--follow", "observing.*"], ["follow", "web", "-f", "observing.seen"], ["observing.*"]],
)
def test_trace_follows_a_machine(machine: FakeMachine, pyvmm: Run, words: list[str]) -> None:
    stop = keep_tracing()
    found = pyvmm("trace", *words, "--count", "2", "--timeout", "20")
    stop.set()
    assert (found.status, found.err) == (0, "")
    assert [line.split()[1:] for line in found.out.splitlines()] == [["observing.seen", "it"]] * 2


def test_trace_follows_as_json(machine: FakeMachine, pyvmm: Run) -> None:
    stop = keep_tracing()
    found = pyvmm("trace", "--follow", "observing.*", "--count", "1", "--json", "--timeout", "20")
    stop.set()
    assert json.loads(found.out)["what"] == "it"


def test_trace_ends_with_the_machine(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.3, machine.quit).start()
    assert pyvmm("trace", "web", "--follow", "observing.*").status == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--follow", "nothing.*"], "no trace event matches 'nothing.*'"),
        (["nobody"], "no VM named 'nobody'"),
        (["diff", "/nowhere", "/nowhere"], "/nowhere: No such file or directory"),
        (["list", "nothing.*"], "no trace event matches"),
    ],
)
def test_trace_complains_in_one_line(machine: FakeMachine, pyvmm: Run, words: list[str], line: str) -> None:
    found = pyvmm("trace", *words)
    assert found.status == 1
    assert line in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--list"], ["list"]])
def test_trace_lists_every_event_there_is(pyvmm: Run, words: list[str]) -> None:
    root = Path(__file__).parents[3]
    found = pyvmm("trace", *words).out
    files = [each for each in root.glob("pyvmm/**/*.py") if "testbed" not in each.parts]  # its events are its tests'
    for file in [*files, *root.glob("devices/**/*.py")]:
        for line in file.read_text().splitlines():
            if ' = event("' in line and not line.startswith((" ", "#")):
                assert line.split('"')[1] in found, f"{file} is not imported for --list"


def test_trace_list_takes_a_pattern(pyvmm: Run) -> None:
    found = json.loads(pyvmm("trace", "list", "vmbus_post*", "--json").out)
    assert found == [{"name": "vmbus_post_msg", "fields": ["type", "size"], "template": "type {type} size {size}"}]


def test_trace_diff_of_equal_traces_is_silent(pyvmm: Run) -> None:
    path = str(CAPTURES / "resize.jsonl")
    found = pyvmm("trace", "diff", path, path)
    assert (found.status, found.out) == (0, "")


def test_trace_diff_shows_what_differs(pyvmm: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(
        "vmbus_post_msg type 1 size 8\nvmbus_post_msg type 2 size 8\nvmbus_terminate_offers\n"
    )
    (tmp_path / "b").write_text(
        "vmbus_post_msg type 1 size 9\nvmbus_terminate_offers\nvmbus_msg_cb message status 0\n"
    )
    found = pyvmm("trace", "diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.status == 1
    assert found.out.splitlines() == [
        "~ vmbus_post_msg type 1 size 8   [size: 8 | 9]",
        "- vmbus_post_msg type 2 size 8",
        "  vmbus_terminate_offers",
    ]
    assert "vmbus_msg_cb (1)" in found.err
    as_json = json.loads(pyvmm("trace", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json").out)
    assert [each["kind"] for each in as_json["differences"]] == ["changed", "only-a"]


def test_help_names_every_format_that_is_read(pyvmm: Run) -> None:
    assert "Chrome" in pyvmm("trace", "convert", "--help").out
    assert "any format" in " ".join(pyvmm("trace", "diff", "--help").out.split())


def test_trace_converts(pyvmm: Run, tmp_path: Path) -> None:
    source = str(CAPTURES / "resize.jsonl")
    assert pyvmm("trace", "convert", source, str(tmp_path / "t.json")).status == 0
    assert json.loads((tmp_path / "t.json").read_text())
    found = pyvmm("trace", "convert", source, source)
    assert (found.status, found.err.count("\n")) == (1, 1)


def test_report_makes_a_page_and_tables(pyvmm: Run, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    found = pyvmm("report", str(CAPTURES / "resize.jsonl"), "-o", str(page), "--csv", str(tmp_path / "csv"))
    assert found.status == 0
    assert page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "csv" / "memory.csv").exists()


def test_report_sums_up_as_json(pyvmm: Run, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    found = pyvmm("report", str(CAPTURES / "resize.jsonl"), "-o", str(page), "--csv", str(tmp_path), "--json")
    summed = json.loads(found.out)
    assert (summed["path"], summed["events"], len(summed["tables"])) == (str(page), 344, 5)
    (resizes,) = [each for each in summed["latencies"] if each["what"].startswith("resize")]
    assert (resizes["answers"], resizes["replaced"], resizes["unanswered"]) == (3, 0, 0)
    assert resizes["least"] <= resizes["median"] <= resizes["p95"] <= resizes["most"]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "/dev/null", "/"])
def test_report_of_no_trace_is_one_line(pyvmm: Run, tmp_path: Path, name: str) -> None:
    found = pyvmm("report", name, "-o", str(tmp_path / "r.html"))
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert not (tmp_path / "r.html").exists()


def test_sinks_write_a_file_while_the_block_runs(tmp_path: Path) -> None:
    with traces(TraceSettings(["observing.*"], tmp_path / "t.txt"), machine="web"):
        seen("me")
    seen("not me")
    assert [line.split(maxsplit=1)[1] for line in (tmp_path / "t.txt").read_text().splitlines()][1:] == [
        "observing.seen me"
    ]


@pytest.mark.parametrize(
    ("patterns", "file", "format", "words"),
    [
        (["nothing.*"], None, None, "no trace event"),
        ([], None, "json", "--trace-file"),
        ([], Path("/nowhere/t"), None, "No such"),
    ],
)
def test_wrong_trace_options_are_one_line(
    patterns: list[str], file: Path | None, format: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words), traces(TraceSettings(patterns, file, format)):
        pass
    assert not seen.on


def test_log_shows_the_console(machine: FakeMachine, pyvmm: Run) -> None:
    machine.console = b"one\r\ntwo\r\nthree"
    assert pyvmm("log").out == "one\ntwo\nthree"
    assert pyvmm("log", "web", "-n", "1").out == "three"
    assert pyvmm("log", "web", "-n", "0").out == ""
    assert json.loads(pyvmm("log", "--json").out)["end"] == 15


def test_log_follows_until_the_end(machine: FakeMachine, pyvmm: Run) -> None:
    machine.console = b"one\n"

    def more() -> None:
        machine.console += b"two\n"
        machine.quit()  # the last words are what people look for

    threading.Timer(0.2, more).start()
    assert pyvmm("log", "--follow").out == "one\ntwo\n"


def test_devices_lists_channels(machine: FakeMachine, pyvmm: Run) -> None:
    assert "heartbeat" in pyvmm("devices").out
    assert json.loads(pyvmm("devices", "web", "--json").out)[0]["name"] == "heartbeat"


def test_devices_shows_rings_and_trouble(machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row: dict[str, Any] = {"relid": 1, "name": "hv-balloon", "id": "b1", "state": "open"}
    row |= {"packets-in": 5, "packets-out": 6, "signals-in": 1, "signals-out": 2}
    row |= {"ring-in": 4000, "ring-in-used": 1000, "ring-out": 4000, "refused": 3}
    row["type"] = "525074dc-8985-46e2-8057-a307dc18a502"
    monkeypatch.setattr(machine, "info_vmbus", lambda: [row])
    line = pyvmm("devices").out.splitlines()[1]
    shown = ["#1", "hv-balloon", "b1", "open", "5 / 6", "1 / 2", "25% / 0%", "Dynamic memory", "3 refused"]
    assert re.split(r"\s{2,}", line) == shown


@pytest.mark.parametrize(("id", "shown"), [("beat", "beat"), ("", "/machine/peripheral-anon/heartbeat")])
def test_devices_shows_what_device_del_takes(
    machine: FakeMachine, pyvmm: Run, monkeypatch: pytest.MonkeyPatch, id: str, shown: str
) -> None:
    row = {"relid": 2, "name": "heartbeat", "state": "open", "id": id, "path": "/machine/peripheral-anon/heartbeat"}
    monkeypatch.setattr(machine, "info_vmbus", lambda: [row])
    assert pyvmm("devices").out.splitlines()[1].split() == ["#2", "heartbeat", shown, "open"]


def panic(machine: FakeMachine) -> None:
    text = "<6>[ 1.0] sysrq: Trigger a crash\n<0>[ 1.1] Kernel panic - not syncing: sysrq\n<4>[ 1.2] Call Trace:"
    machine.emit("GUEST_PANICKED", **{"action": "poweroff", "x-text": text})
    machine.emit("SHUTDOWN", guest=True, reason="guest-panic")
    machine.ended()


def test_wait_reports_how_it_ended(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.2, machine.quit).start()
    assert pyvmm("wait") == (0, "web: ended (host-qmp-quit)\n", "")


def test_wait_of_a_panic_has_the_panics_status(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.2, panic, [machine]).start()
    found = pyvmm("wait", "--json")
    assert (found.status, json.loads(found.out)["result"]) == (255, "panicked")
    assert found.err == "pyvmm: guest panicked: Kernel panic - not syncing: sysrq\n"


def test_wait_for_a_driver_of_a_guest_that_panics(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.3, panic, [machine]).start()
    machine.info_vmbus = lambda: [{"name": "slow", "state": "offered"}]  # type: ignore[method-assign]
    found = pyvmm("wait", "--channel", "slow")
    assert found == (255, "web: panicked\n", "pyvmm: guest panicked: Kernel panic - not syncing: sysrq\n")


def test_wait_gives_up(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("wait", "--timeout", "0.1") == (124, "web: still running after 0.1 s\n", "")


def test_wait_for_an_event(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.2, lambda: machine.emit("BALLOON_CHANGE", actual=256 * MIB)).start()
    assert pyvmm("wait", "--event", "BALLOON_CHANGE").out == f"web: BALLOON_CHANGE actual={256 * MIB}\n"


def test_an_event_that_there_is_not_is_not_waited_for(machine: FakeMachine, pyvmm: Run) -> None:
    found = pyvmm("wait", "--event", "balloon_changed")
    assert found.status == 2
    assert "BALLOON_CHANGE?" in found.err


def test_wait_by_name_lets_a_machine_get_its_name_first(pyvmm: Run) -> None:
    with ExitStack() as stack:

        def start() -> None:
            registration = stack.enter_context(registry.claim("web"))
            stack.enter_context(serving(FakeMachine("web"), registration.socket))

        timer = threading.Timer(0.3, start)
        timer.start()
        assert pyvmm("wait", "web", "--channel", "heartbeat").status == 0
        timer.join()
    assert "no VM named 'web'" in pyvmm("wait", "web").err


def test_wait_takes_as_long_as_a_machine_takes_to_start(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "PROMPT", 0.1)
    with registry.claim("web") as registration, ExitStack() as stack:
        assert pyvmm("wait", "web", "--timeout", "0.2") == (
            124, "web: still starting after 0.2 s\n", "pyvmm: web is starting\n",
        )  # fmt: skip
        timer = threading.Timer(0.3, lambda: stack.enter_context(serving(FakeMachine("web"), registration.socket)))
        timer.start()
        assert pyvmm("wait", "web", "--channel", "heartbeat").status == 0
        timer.join()


def test_wait_for_a_machine_that_never_came_fails(pyvmm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "PROMPT", 0.1)
    threading.Timer(0.3, registry.claim("web").release).start()
    found = pyvmm("wait", "web")
    assert found == (1, "", "pyvmm: web is starting\npyvmm: web ended before it had started\n")


def test_wait_for_a_driver(machine: FakeMachine, pyvmm: Run) -> None:
    assert pyvmm("wait", "--channel", "heartbeat") == (0, "web: heartbeat is open\n", "")
    found = pyvmm("wait", "--channel", "nope")
    assert (found.status, found.err) == (1, "pyvmm: the machine has no VMBus device named 'nope': it has heartbeat\n")


def test_waiting_for_something_in_a_machine_that_ends_fails(machine: FakeMachine, pyvmm: Run) -> None:
    threading.Timer(0.2, machine.quit).start()
    assert pyvmm("wait", "--event", "RESET").status == 1


def test_kill_asks_first(pyvmm: Run) -> None:
    made = FakeMachine("dying")
    registration = registry.claim("dying")
    with serving(made, registration.socket):
        ended = made.ended

        def end_all() -> None:
            ended()
            registration.release()

        made.ended = end_all
        assert pyvmm("kill", "dying") == (0, "dying: ended\n", "")
    assert made.calls == ["quit"]


def test_kill_sends_a_signal_where_the_monitor_does_not_answer(
    runtime: Path, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill, "ANSWER_TIMEOUT", 0.3)
    code = (
        "import socket, signal, sys, time; from pyvmm.client import registry\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "r = registry.claim('stuck'); s = socket.socket(socket.AF_UNIX); s.bind(str(r.socket)); s.listen(5)\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    found = pyvmm("kill", "stuck", "--json")
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()
    assert json.loads(found.out)["ended-by"] == "SIGKILL"


def test_kill_signals_no_process_that_runs_more_than_the_machine(
    runtime: Path, pyvmm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill, "PATIENCE", 0.3)
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    with registry.claim("failed", shared=True) as registration, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(registration.socket))
        silent.listen(5)
        found = pyvmm("kill", "failed")
    assert (found.status, sent) == (1, [])
    reason = f"failed does not answer, and process {os.getpid()} runs more than it: Ctrl-C there ends them all"
    assert found.err == f"pyvmm: {reason}\n"


@pytest.mark.parametrize("command", ["trace", "report", "log", "wait", "kill", "devices", "top"])
def test_help_teaches_by_example(pyvmm: Run, command: str) -> None:
    assert f"pyvmm {command}" in pyvmm(command, "--help").out.split("\n", 2)[2]


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("pyvmm lo", ["log"]),
        ("pyvmm kill ", ["web"]),
        ("pyvmm top w", ["web"]),
        ("pyvmm trace follow w", ["web"]),
        ("pyvmm trace follow web vmbus_post", ["vmbus_post_msg"]),
        ("pyvmm trace di", ["diff"]),
        ("pyvmm trace we", ["web"]),
        ("pyvmm wait --event BALL", ["BALLOON_CHANGE"]),
        ("pyvmm wait --channel he", ["heartbeat"]),
        ("pyvmm wait web --channel he", ["heartbeat"]),
        ("pyvmm wait nobody --channel he", [""]),
    ],
)
def test_words_of_these_commands_are_completed(
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    candidates: list[str],
) -> None:
    from pyvmm.cli.main import main

    monkeypatch.setenv("_PYVMM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    with pytest.raises(SystemExit):
        main([])
    assert [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()] == candidates
