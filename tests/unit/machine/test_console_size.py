"""The guest's console gets the size of the user's terminal: at the agent's start, at changes, at its next start."""

from __future__ import annotations

from pyvmm.loop import Timers
from pyvmm.machine.agent import GuestAgent

READY = b"ready 2 6.1.0\n"


def test_the_size_is_sent_when_the_agent_is_ready_and_when_it_changes() -> None:
    sent: list[bytes] = []
    agent = GuestAgent(lambda data: sent.append(data) or len(data), Timers(lambda: 0.0))
    agent.resize(24, 80)
    assert sent == [], "the agent is not ready"
    agent.received(READY)
    assert sent == [b"size 24 80\n"]
    agent.resize(24, 80)
    agent.resize(50, 132)
    assert sent[1:] == [b"size 50 132\n"]


def test_the_size_is_sent_again_to_a_restarted_guest() -> None:
    sent: list[bytes] = []
    agent = GuestAgent(lambda data: sent.append(data) or len(data), Timers(lambda: 0.0))
    agent.resize(50, 132)
    agent.received(READY)
    agent.reset()
    agent.received(READY)
    assert sent == [b"size 50 132\n"] * 2


def test_without_a_terminal_nothing_is_sent() -> None:
    sent: list[bytes] = []
    agent = GuestAgent(lambda data: sent.append(data) or len(data), Timers(lambda: 0.0))
    agent.received(READY)
    assert sent == []
