from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.cli.commands.tour import _Guide
from pyvmm.cli.tour_show import JsonReporter, TextReporter, TourReporter
from pyvmm.devices.balloon.plan import ResizeOutcome
from tests.support.command_line import Run

MIB = 1 << 20
DEVICE = {"relid": 1, "name": "hv-balloon", "state": "open", "guid": "1eccfd72-4b41-45ef-b73a-4a6e44c12924"}


class Machine:
    """Linux of a few words: every command is answered at once, and the balloon stops at 300 MiB."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(cpus=2, memory=512 * MIB)
        self.engine = SimpleNamespace(name="user")
        self.balloon = SimpleNamespace(on_finish=[])
        self.agent = self.monitor = self
        self.loop = SimpleNamespace(after=lambda seconds, callback: SimpleNamespace(cancel=lambda: None))
        self.size = 512 * MIB

    def execute(self, command: str, output: Callable[[str, bytes], None], done: Callable[[int | None], None]) -> None:
        match command.split()[0]:
            case "uname":
                output("out", b"6.1.0\n2\n")
            case "dmesg":
                output("out", b"Hypervisor detected: Microsoft Hyper-V\n")
            case "for":  # a part of the free pages is held apart in the first reading
                for free in (self.size // 2 - 40 * MIB, self.size // 2):
                    output("out", f"MemTotal: {self.size >> 10} kB\nMemFree: {free >> 10} kB\n".encode())
        done(0)

    def balloon_set(self, size: int) -> None:
        self.size = max(size, 300 * MIB)
        reason = "" if size == self.size else "the guest has no more to give"
        for finished in self.balloon.on_finish:
            finished(ResizeOutcome(size, self.size, reason))

    def info_vmbus(self) -> list[dict[str, Any]]:
        return [DEVICE]

    def resident(self) -> int:
        return self.size // 4


def tell(show: TourReporter, capsys: pytest.CaptureFixture[str]) -> str:
    ended: list[bool] = []
    guide = _Guide(Machine(), show, False, 0.0)
    guide.finished = lambda: ended.append(True)
    guide.start()
    assert ended == [True]
    return capsys.readouterr().out


def test_programs_get_a_json_object_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [json.loads(line) for line in tell(JsonReporter(), capsys).splitlines()]
    assert [each["step"] for each in steps] == [
        "booting", "booted", "seen", "devices", "memory", "memory", "resized", "resized",
    ]  # fmt: skip
    assert steps[1] | {"seconds": 0} == {
        "step": "booted",
        "release": "6.1.0",
        "cpus": 2,
        "seconds": 0,
        "engine": "user",
    }
    assert (steps[2]["log"], steps[3]["devices"]) == (["Hypervisor detected: Microsoft Hyper-V"], [DEVICE])
    assert (steps[4]["used"], steps[5]["used"]) == (0, 204 * MIB)
    assert steps[6] | {"seconds": 0} == {
        "step": "resized",
        "target": 256 * MIB,
        "actual": 300 * MIB,
        "reason": "the guest has no more to give",
        "seconds": 0,
        "total": 300 * MIB,
        "free": 150 * MIB,
        "resident": 75 * MIB,
    }


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = tell(TextReporter(), capsys)
    assert "Booting Linux (2 vCPUs, 512 MiB)" in text
    assert "Linux 6.1.0 with 2 CPUs is up after" in text
    assert "after boot                         512 MiB         256 MiB         128 MiB" in text
    assert "reached 300 MiB: the guest has no more to give\n  balloon 256 MiB (0.00 s)" in text
    assert text.endswith("Powering off\n")


def test_no_shell_follows_json(pyvmm: Run) -> None:
    found = pyvmm("tour", "--json", "--shell")
    assert (found.status, found.out) == (2, "")
    assert "--json and --shell exclude each other" in found.err
