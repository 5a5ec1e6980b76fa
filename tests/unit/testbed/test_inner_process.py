"""The outer pytest's end of the inner one, with an ordinary process in its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.testbed.plugin import inner_process
from pyvmm.testbed.plugin.inner_process import Died, InnerProcess, Job, Stalled

READY = "print(json.dumps({'kind': 'ready'}), flush=True)\n"
REPORT = "print(json.dumps({'kind': 'report', 'report': {}}), flush=True)\n"
FINISHED = "print(json.dumps({'kind': 'finished'}), flush=True)\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., InnerProcess]]:
    made: list[InnerProcess] = []

    def start(script: str, progress: Callable[[str], None] = print) -> InnerProcess:
        launcher = (
            sys.executable,
            "-c",
            "import json, os, sys, time\njob = json.loads(sys.stdin.readline())\n" + script,
        )
        job = Job(["-q"], str(tmp_path), ["test_a.py"], ["test_a.py::test_a"])
        made.append(InnerProcess(job, launcher, progress=progress))
        return made[-1]

    yield start
    for each in made:
        each.close()
        assert not each.folder.exists()
        assert each._process.poll() is not None


def test_a_test_is_asked_for_and_its_messages_come_until_it_is_finished(start: Callable[..., InnerProcess]) -> None:
    inner = start(
        READY + "asked = json.loads(sys.stdin.readline())\nassert asked['run'] == 'x', asked\n" + REPORT + FINISHED
    )
    inner.wait_ready()
    assert [message["kind"] for message in inner.run("x", 10)] == ["report", "finished"]


def test_its_words_before_it_is_ready_are_progress(start: Callable[..., InnerProcess]) -> None:
    said: list[str] = []
    start("print('booting a host', file=sys.stderr, flush=True); time.sleep(1)\n" + READY, said.append).wait_ready()
    assert said == ["booting a host"]


def test_one_that_ends_is_told_with_its_status_and_output_and_stays_dead(start: Callable[..., InnerProcess]) -> None:
    inner = start("print('no such module', file=sys.stderr); sys.exit(3)")
    for _ in range(2):
        with pytest.raises(Died, match=r"(?s)ended with status 3\nits output ends:\nno such module"):
            inner.wait_ready()


def test_one_that_is_never_ready_is_ended(
    start: Callable[..., InnerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_process, "START_LIMIT", 0.2)
    with pytest.raises(Died, match="not ready within 0 s"):
        start("time.sleep(60)").wait_ready()


def test_a_test_without_end_is_given_up(start: Callable[..., InnerProcess]) -> None:
    inner = start(READY + "time.sleep(60)")
    inner.wait_ready()
    with pytest.raises(Died, match="no end of the test within 0 s"):
        list(inner.run("x", 0.1))


def test_a_host_that_stands_still_is_told_from_a_test_that_takes_long(
    start: Callable[..., InnerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner_process, "SILENCE_LIMIT", 0.7)
    beats = "for n in range(8):\n    print(json.dumps({'kind': 'beat'}), flush=True); time.sleep(0.2)\n"
    inner = start(READY + beats + "time.sleep(60)")
    inner.wait_ready()
    with pytest.raises(Stalled, match="has stood still"):
        list(inner.run("x", 60))


def test_a_long_log_is_shown_by_its_beginning_and_end(start: Callable[..., InnerProcess]) -> None:
    inner = start(READY + "[print(n, file=sys.stderr) for n in range(1000)]\nsys.stderr.flush()\n" + FINISHED)
    inner.wait_ready()
    before = inner.log_size()
    list(inner.run("x", 10))
    lines = inner.log_part(min(before, 0)).splitlines()
    assert (lines[0], lines[-1]) == ("0", "999")
    assert "... 950 lines ..." in lines


def test_it_ends_with_its_input(start: Callable[..., InnerProcess], tmp_path: Path) -> None:
    inner = start(READY + "sys.stdin.read(); open('ended', 'w').close()")
    inner.wait_ready()
    inner.close()
    assert (tmp_path / "ended").exists()


def test_an_emulated_hosts_pytest_captures_in_memory(
    start: Callable[..., InnerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    inner = start(READY + "print(json.dumps({'kind': 'died', 'env': dict(os.environ)}), flush=True)")
    inner.wait_ready()
    (message,) = inner.run("x", 10)
    assert message["env"]["TMPDIR"] == "/dev/shm"
    assert "PYTHONDONTWRITEBYTECODE" not in message["env"]
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
