"""Traces that are none, or damaged: refused or read as far as they go, in time linear in their size."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyvmm.analysis import read
from pyvmm.analysis.chrome_read import chrome_entries
from pyvmm.analysis.read import parse_line, read_trace, rewrite
from pyvmm.analysis.report.latency import latencies
from pyvmm.analysis.report.page import page
from pyvmm.analysis.report.summary import summarise
from pyvmm.errors import ConfigError


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/", "a\0b", "x" * 5000])
def test_what_is_no_file_is_one_line(path: str) -> None:
    with pytest.raises(ConfigError):
        read_trace(Path(path))


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="pipe"):
        read_trace(tmp_path / "fifo")


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "1" + "0" * 400, "true", '"1"', "null"]
)
def test_a_time_that_is_none_is_no_event(value: str) -> None:
    if value != "true":  # a number to Python
        assert parse_line(f'{{"time": {value}, "event": "a.b"}}') is None
    assert parse_line("9" * 400 + ".5 machine.memory") is None
    assert [*chrome_entries(f'[{{"ph": "i", "ts": {value}, "name": "a.b"}}')] != [] or value == "true"


@pytest.mark.parametrize(
    "value", ["1" * 30, "1" * 4000, "1" * 5000, "NaN", "1e999", "[" * 90 + "]" * 90, '"\\ud800"']
)
@pytest.mark.parametrize("name", ["machine.memory", "balloon.target_set", "trace.dropped", "machine.exit_count"])
def test_values_of_any_kind_are_reported_and_written_again(tmp_path: Path, name: str, value: str) -> None:
    file = tmp_path / "trace"
    members = ("actual", "target", "current", "count", "resident", "vcpu")
    fields = ", ".join(f'"{each}": {value}' for each in members)
    file.write_text(f'{{"time": 1, "event": "{name}", {fields}}}\n{{"time": 2, "event": "{name}"}}\n')
    found = read_trace(file)
    page(summarise(found), latencies(found), file).encode("utf-8", "replace")
    for format in ("text", "json", "chrome"):
        assert "".join(rewrite(found, format))


def test_an_endless_line_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    event = b'{"time": 1, "event": "a.b"}\n'
    file.write_bytes(event + b"x" * (3 * read.LINE_LIMIT + 5) + b"\n" + event)
    found = read_trace(file)
    assert (len(found.entries), found.skipped) == (2, 1)


def test_more_events_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "EVENT_LIMIT", 3)
    (tmp_path / "trace").write_text('{"time": 1, "event": "a.b"}\n' * 4)
    with pytest.raises(ConfigError, match="more than 3 events"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize("line", ["[1,\n", '{"a":\n', "[\n", '"x\n', "[1]\n", "x\n"])
def test_broken_elements_cost_linear_time(line: str) -> None:
    """Each line may be an element that is broken only at the end of the text; 800 of them before half a megabyte."""
    text = "[" + line * 800 + "1,\n" * 170_000
    began = time.monotonic()
    for _ in chrome_entries(text):
        pass
    assert time.monotonic() - began < 10
