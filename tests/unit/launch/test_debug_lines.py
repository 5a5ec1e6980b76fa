"""The lines of `--debug`: what is printed, how often, and the table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pyvmm.client.replies import access_text
from pyvmm.errors import ConfigError
from pyvmm.launch.build import machine_config
from pyvmm.launch.debug_lines import RATE, DebugLines, table
from pyvmm.launch.options import read_debug, read_keywords
from pyvmm.machine.unhandled import UnhandledLog


class Now:
    """Posts at once; a clock that can be moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def post(self, callback: Any, *args: Any) -> None:
        callback(*args)


def lines_of(*kinds: str) -> tuple[UnhandledLog, list[str], Now, DebugLines]:
    log, printed, now = UnhandledLog(lambda: (0, 0x1234)), list[str](), Now()
    machine: Any = SimpleNamespace(unhandled=log, loop=now)
    return log, printed, now, DebugLines(machine, kinds, show=printed.append, clock=lambda: now.time)


def test_only_the_kinds_asked_for_are_printed() -> None:
    log, printed, _, _ = lines_of("ports")
    log.io("port read", 0x300, 2, None)
    log.io("mmio read", 0xF0000000, 4, None)
    assert printed == ["unhandled port read 0x300: 2 bytes, vcpu 0 at 0x1234"]


def test_a_flood_is_limited_but_a_new_address_is_always_shown() -> None:
    log, printed, now, lines = lines_of("ports")
    for _ in range(RATE + 90):
        log.io("port write", 0x80, 1, 1)
    assert len(printed) == RATE
    log.io("port write", 0x81, 1, 1)
    assert printed[-1] == "unhandled port write 0x81: 1 byte, value 0x1, vcpu 0 at 0x1234 (90 before it left out)"
    log.io("port write", 0x80, 1, 1)
    now.time += 1
    log.io("port write", 0x80, 1, 2)
    assert printed[-1].endswith("value 0x2 (1 before it left out)")
    del printed[:]
    lines.finish()
    assert [line.split()[:3] for line in printed[2:]] == [["port", "write", "0x80"], ["port", "write", "0x81"]]
    log.io("port write", 0x82, 1, 1)
    assert len(printed) == 4, "nothing is printed after the end"


def test_lines_left_out_at_the_end_are_counted() -> None:
    log, printed, _, lines = lines_of("ports")
    for _ in range(RATE + 3):
        log.io("port write", 0x80, 1, 1)
    lines.finish()
    assert f"ports: 3 more lines left out, {RATE} a second are shown" in printed


def test_the_table_says_when_there_was_nothing() -> None:
    assert table(UnhandledLog(lambda: None).describe(), {"msr", "mmio"}) == ["unhandled accesses (mmio, msr): none"]


def test_an_exit_is_named_instead_of_numbered() -> None:
    assert access_text("exit", 0, "IoapicEoi") == "exit IoapicEoi"


@pytest.mark.parametrize("bad", ["", "port", "ports,", "ports;msr", "all", "ports, msr"])
def test_an_unknown_kind_is_one_line_with_those_there_are(bad: str) -> None:
    with pytest.raises(ConfigError, match="is not one of exits, mmio, ports, msr, hypercalls"):
        read_debug(bad)


def test_kinds_are_given_together_or_one_by_one() -> None:
    for given in ("ports,msr", ["ports", "msr"], ["msr", "ports,msr"]):
        assert machine_config(read_keywords({"debug": given}, {})).debug == {"ports", "msr"}
