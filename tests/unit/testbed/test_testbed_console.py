"""The guest's console as a test sees it: decoding over pieces, waits, bounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from pyvmm.testbed import console
from pyvmm.testbed.console import Console
from pyvmm.testbed.waits import TimedOut


class StandIn:
    """Stands for a VM whose guest prints one of `lines` at each turn of the loop."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)
        self.console = Console(self)

    def until(self, happened: Callable[[], object], seconds: float, what: str) -> None:
        while not happened():
            if not self.lines:
                raise TimedOut(f"no {what}")
            self.console.received(self.lines.pop(0))


def test_characters_cut_by_a_write_are_joined_and_carriage_returns_removed() -> None:
    vm = StandIn()
    for piece in ("grün\r\n".encode()[:3], "grün\r\n".encode()[3:], b"\xff\n"):
        vm.console.received(piece)
    assert vm.console.text == "grün\n\ufffd\n"


def test_expect_goes_on_after_the_match_before() -> None:
    vm = StandIn(b"a 1\n", b"a 2\n", b"a 3\n")
    assert [vm.console.expect(r"^a (\d)")[1] for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(TimedOut, match="it ends: 'a 1"):
        vm.console.expect(r"^a (\d)")


def test_output_without_end_is_bounded_and_expect_still_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "KEPT", 1000)
    vm = StandIn()
    vm.console.received(b"first\n")
    vm.console.expect("first")
    for number in range(5000):
        vm.console.received(b"line %d\n" % number)
    assert len(vm.console.text) <= 2000
    assert "first" not in vm.console.text
    assert vm.console.expect(r"line (\d+)")
    assert vm.console.expect("line 4999")


def test_the_tail_has_the_time_of_each_lines_first_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "KEPT", 1000)
    vm = StandIn()
    for number, piece in enumerate((b"dropped\n" * 500, b"one\r\ntw", b"o\n", b"three\n\n"), 1):
        monkeypatch.setattr(time, "monotonic", lambda number=number: float(number))
        vm.console.received(piece)
    assert vm.console.tail(3, 1000) == [(2.0, "one"), (2.0, "two"), (4.0, "three")]
    assert vm.console.tail(10, 7) == [(3.0, "o"), (4.0, "three")]
    assert StandIn().console.tail(3, 100) == [(0.0, "")]
