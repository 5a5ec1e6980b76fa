from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.guest_time import GuestTimers
from pyvmm.loop import Timers
from pyvmm.machine.agent import COMMANDS_LIMIT, TIMED_OUT, GuestAgent
from pyvmm.machine.execute import GRACE, OUTPUT_LIMIT, execute
from tests.support.fake_clock import FakeLoop


class Bench:
    """An agent whose guest is played by hand, on a clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers = Timers(lambda: self.now)
        self.sent: list[bytes] = []
        self.agent = GuestAgent(lambda data: self.sent.append(data) or len(data), self.timers)
        self.results: list[dict[str, Any] | HostError] = []

    def run(self, command: str, seconds: int = 10) -> None:
        execute(self.agent, self.timers, command, seconds, self.results.append)  # type: ignore[arg-type]

    def send_to_host(self, *lines: bytes) -> None:
        for line in lines:
            self.agent.received(line + b"\n")

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.timers.run_due()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_output_is_collected_by_stream(bench: Bench) -> None:
    bench.send_to_host(b"ready 2 6.1")
    bench.run("uname")
    bench.send_to_host(
        b"out 1 " + b64encode(b"Li"), b"err 1 " + b64encode(b"oops"), b"out 1 " + b64encode(b"nux"), b"exit 1 3"
    )
    assert bench.results == [{"status": 3, "stdout": b"Linux", "stderr": b"oops", "truncated": False}]


def test_more_output_than_a_reply_holds_is_cut(bench: Bench) -> None:
    bench.send_to_host(b"ready 2 6.1")
    bench.run("yes")
    for _ in range(OUTPUT_LIMIT // 32768 + 1):
        bench.send_to_host(b"out 1 " + b64encode(bytes(32768)))
    bench.send_to_host(b"exit 1 0")
    [result] = bench.results
    assert isinstance(result, dict)
    assert len(result["stdout"]) == OUTPUT_LIMIT and result["truncated"]


def test_a_command_waits_for_the_agent_but_not_for_ever(bench: Bench) -> None:
    bench.run("true", 10)
    bench.after(10 + GRACE + 1)
    [result] = bench.results
    assert isinstance(result, HostError) and "no agent answers in the guest after 10 s" in str(result)
    bench.send_to_host(b"ready 2 6.1")
    assert not bench.sent  # it is not run behind our back


def test_a_hung_command_is_killed_and_reported_once(bench: Bench) -> None:
    bench.send_to_host(b"ready 2 6.1")
    bench.run("sleep 99", 1)
    bench.after(1 + GRACE + 1)
    assert bench.sent[-1] == b"kill 1 KILL\n"
    bench.send_to_host(b"exit 1 137")
    assert len(bench.results) == 1


def test_a_reboot_ends_it(bench: Bench) -> None:
    bench.send_to_host(b"ready 2 6.1")
    bench.run("reboot")
    bench.agent.reset()
    [result] = bench.results
    assert isinstance(result, HostError) and "restarted" in str(result)


@pytest.mark.parametrize("command", ["x" * 40_000, "a\0b", "\ud800"])
def test_what_cannot_be_sent_is_refused_at_once(bench: Bench, command: str) -> None:
    with pytest.raises(ConfigError):
        bench.run(command)
    bench.send_to_host(b"ready 2 6.1")
    assert not bench.sent and not bench.results


def test_a_command_that_takes_too_long_is_ended_by_the_host(bench: Bench) -> None:
    bench.send_to_host(b"ready 2 6.1")
    bench.run("sleep 60", seconds=10)
    bench.after(9.9)
    assert bench.sent[1:] == []
    bench.after(0.2)
    assert bench.sent[1:] == [b"kill 1 TERM\n"]
    bench.after(2.1)
    assert bench.sent[2:] == [b"kill 1 KILL\n"]
    bench.send_to_host(b"exit 1 137")
    assert [each["status"] for each in bench.results] == [TIMED_OUT]
    bench.after(100)
    assert len(bench.sent) == 3 and len(bench.results) == 1


def test_a_command_s_time_begins_when_it_is_sent(bench: Bench) -> None:
    bench.run("sleep 60", seconds=10)
    bench.after(8)
    bench.send_to_host(b"ready 2 6.1")
    bench.after(6.9)
    assert bench.sent == [b"run 1 'sleep 60'\n"]


def test_a_pause_counts_for_no_command_s_time(bench: Bench) -> None:
    loop = FakeLoop()
    time = GuestTimers(loop)
    agent = GuestAgent(lambda data: bench.sent.append(data) or len(data), time)
    results: list[dict[str, Any] | HostError] = []
    agent.received(b"ready 2 6.1\n")
    execute(agent, time, "sleep 5", 10, results.append)
    time.freeze()
    loop.advance(3600)
    time.thaw()
    loop.advance(9)
    assert bench.sent == [b"run 1 'sleep 5'\n"] and results == []
    loop.advance(30)
    assert b"kill 1 TERM\n" in bench.sent and isinstance(results[0], HostError)


def test_commands_that_wait_for_a_silent_guest_are_bounded(bench: Bench) -> None:
    for _ in range(COMMANDS_LIMIT):
        bench.run("sleep 1")
    with pytest.raises(ConfigError, match="wait for the guest"):
        bench.run("sleep 1")
    bench.after(10 + GRACE)
    assert len(bench.results) == COMMANDS_LIMIT
    bench.run("sleep 1")
