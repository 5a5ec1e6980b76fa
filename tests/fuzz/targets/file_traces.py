"""Recorded traces in every format, and all that is made of them: the report, a comparison, each other format."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pyvmm.analysis.diff import compare
from pyvmm.analysis.read import Trace, read_trace, rewrite
from pyvmm.analysis.report.latency import latencies
from pyvmm.analysis.report.page import page
from pyvmm.analysis.report.summary import summarise
from pyvmm.errors import ConfigError
from pyvmm.launch.trace_events import load_events
from tests.fuzz.feed import as_file

load_events()

SOME_JSON = (
    b'{"time": 1.5, "event": "machine.memory", "actual": 1, "target": 2, "resident": 3}\n'
    b'{"time": 2, "event": "hv_balloon_state_change", "thread": "MainThread", "tostr": "Idle"}\n'
)

NAMES = (b"vmbus_open_channel", b"hv_balloon_state_change", b"machine.memory", b"vmbus.channel_state")


def _read(data: bytes) -> Trace | None:
    with as_file(data) as path, suppress(ConfigError):
        return read_trace(path)
    return None


def _use(data: bytes) -> None:
    found = _read(data)
    if found is None:
        return
    page(summarise(found), latencies(found), Path("trace"))
    compare(found.entries, found.entries[::2])
    for format in ("text", "json", "chrome"):
        text = "".join(rewrite(found, format))
        again = _read(text.encode("utf-8", "surrogatepass"))
        assert again is not None or format != "json", "a trace that we wrote is not read again"


def any_form(data: bytes) -> None:
    _use(data)


def json_lines(data: bytes) -> None:
    """Lines after two good ones; members of an event between its brackets."""
    _use(SOME_JSON + data)
    _use(b'{"time": 3, "event": "balloon.target_set", ' + data)


def text(data: bytes) -> None:
    """Messages of events that have a template, as we and QEMU write them."""
    name = (b"vmbus_open_channel", b"hv_balloon_state_change", b"machine.memory", b"vmbus.channel_state")[
        len(data) % 4
    ]
    for line in data.split(b"\n")[:50]:
        _use(b"0.5 " + name + b" " + line + b"\n4711@1700000000.123456:" + name + b" " + line + b"\n")


def chrome(data: bytes) -> None:
    _use(b'[\n{"ph": "i", "ts": 5, "name": "machine.memory", "args": {' + data)
    _use(b"[" + data)


TARGETS = {
    "file_trace": any_form,
    "file_trace_json": json_lines,
    "file_trace_text": text,
    "file_trace_chrome": chrome,
}
