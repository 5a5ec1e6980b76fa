from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import parse_line, read_trace, rewrite
from pyvmm.errors import ConfigError
from pyvmm.launch.trace_events import load_events

CAPTURES = Path(__file__).parent / "captures"


@pytest.fixture(autouse=True)
def declared() -> None:
    load_events()


def test_json_lines_are_read() -> None:
    found = parse_line('{"time": 1.5, "event": "vmbus_post_msg", "thread": "MainThread", "type": 1, "size": 8}')
    assert found == Entry(1.5, "vmbus_post_msg", "MainThread", {"type": 1, "size": 8})


@pytest.mark.parametrize(
    ("line", "time", "fields"),
    [
        ("vmbus_post_msg type 15 size 16", 0.0, {"type": 15, "size": 16}),
        ("4711@1700000000.25:vmbus_post_msg type 15 size 16", 1700000000.25, {"type": 15, "size": 16}),
        ("3.5 vmbus_post_msg type 15 size 16", 3.5, {"type": 15, "size": 16}),
        ("vmbus_post_msg in other words", 0.0, {"text": "in other words"}),
        ("vmbus_signal_event", 0.0, {}),
        ("vmbus_signal_event ", 0.0, {}),
        ("2.0 balloon.finished target 512 pages, at 512: ", 2.0, {"target": 512, "current": 512, "reason": ""}),
        ("2.0 balloon.finished target 512 pages, at 512:", 2.0, {"target": 512, "current": 512, "reason": ""}),
        ("2.0 balloon.finished target 512 pages, at 512", 2.0, {"target": 512, "current": 512, "reason": ""}),
        (
            "2.0 balloon.finished target 5 pages, at 6: no: more",
            2.0,
            {"target": 5, "current": 6, "reason": "no: more"},
        ),
        (
            "hv_balloon_outgoing_unballoon posting unballoon 7 for 256 @ 0x1000, remaining 0",
            0.0,
            {"trans_id": 7, "count": 256, "start": 4096, "rempages": 0},
        ),
        ("some_event_of_qemu with words", 0.0, {"text": "with words"}),
    ],
)
def test_text_and_qemus_log_turn_back_into_fields(line: str, time: float, fields: dict[str, object]) -> None:
    found = parse_line(line)
    assert found is not None
    assert (found.time, found.fields) == (time, fields)


@pytest.mark.parametrize(
    "line",
    ["", "hello", "{", '{"event": "x.y"}', '{"time": "1", "event": "x.y"}', "[1, 2]", "\x00\xff", "{" * 100000],
)
def test_other_lines_are_no_events(line: str) -> None:
    assert parse_line(line) is None


def test_a_files_threads_are_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"time": 2, "event": "a.b"}\n{"time": 1, "event": "a.c"}\n'
        '{"time": 3, "event": "trace.dropped", "count": 4}\n{"ti'
    )
    found = read_trace(path)
    assert [each.name for each in found.entries] == ["a.c", "a.b", "trace.dropped"]
    assert (found.skipped, found.dropped, found.start, found.seconds) == (1, 4, 1, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no trace events"), (b"\xff\xfe\n" * 5000, "no trace events"), (b"[\n]\n", "no trace events")],
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_trace(tmp_path / "t")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "t")


def test_a_recorded_trace_survives_text(tmp_path: Path) -> None:
    before = read_trace(CAPTURES / "resize.jsonl")
    (tmp_path / "t.txt").write_text("".join(rewrite(before, "text")))
    after = read_trace(tmp_path / "t.txt")
    different = [
        (a.name, a.fields, b.fields)
        for a, b in zip(before.entries, after.entries, strict=True)
        if {k: str(v) for k, v in a.fields.items()} != {k: str(v) for k, v in b.fields.items()}
    ]
    assert not different


def test_a_recorded_trace_becomes_chromes_format() -> None:
    found = json.loads("".join(rewrite(read_trace(CAPTURES / "resize.jsonl"), "chrome")))
    names = {each["args"]["name"] for each in found if each["name"] == "thread_name"}
    assert {"vcpu0", "vcpu1", "loop", "channel #1 hv-balloon", "hv-balloon: state"} <= names


def test_a_recorded_trace_survives_chromes_format(tmp_path: Path) -> None:
    before = read_trace(CAPTURES / "resize.jsonl")
    (tmp_path / "t.json").write_text("".join(rewrite(before, "chrome")))
    after = read_trace(tmp_path / "t.json")
    assert after.skipped == 0
    for a, b in zip(before.entries, after.entries, strict=True):
        assert (a.name, a.fields) == (b.name, b.fields)
        assert b.thread in ("", a.thread)
        assert abs(b.time - (a.time - before.start)) < 1e-6
    assert {"MainThread", "vcpu0", "vcpu1"} <= {entry.thread for entry in after.entries}


EVENT = '{"ph": "i", "ts": 5, "name": "a.b", "args": {"x": 1}, "tid": 1, "pid": 1}'


@pytest.mark.parametrize(
    ("text", "skipped"),
    [
        (f"[{EVENT}]", 0),
        (f"[\n{EVENT},\n", 0),
        (f"[{EVENT}, 7, null]", 2),
        (f'[\n{EVENT},\n{{"ph": "i", "ts"', 1),
        (f'[\n{{"ph": "i", "ts": "x", "name": "a.b"}},\n{EVENT}', 1),
        (f'[\n{{"ph": "i", "ts": 1, "name": "a.b", "args": 5}},\n{EVENT}', 1),
        (f'[\n{{"ph": "M", "name": "thread_name", "pid": 1, "tid": [], "args": 1}},\n{EVENT}', 0),
        (f"[\n{'[' * 100000}\n{EVENT}]", 1),
    ],
)
def test_an_array_that_is_cut_or_broken_gives_what_it_has(tmp_path: Path, text: str, skipped: int) -> None:
    (tmp_path / "t.json").write_text(text)
    found = read_trace(tmp_path / "t.json")
    assert found.entries == [Entry(5e-6, "a.b", "", {"x": 1})]
    assert found.skipped == skipped


def test_qemus_log_is_read() -> None:
    found = read_trace(CAPTURES / "qemu.log")
    assert (len(found.entries), found.skipped) == (7, 0)
    assert not [entry for entry in found.entries if "text" in entry.fields]
