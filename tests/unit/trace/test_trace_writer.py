from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pyvmm import trace
from pyvmm.errors import ConfigError
from pyvmm.trace import Record, event
from pyvmm.trace.writer import FileSink

ticked = event("writer.ticked", "{number}")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_records_are_written_in_order(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "t.jsonl", machine="web")
    trace.subscribe("writer.*", sink)
    for number in range(5000):
        ticked(number)
    trace.unsubscribe(sink)
    sink.close()
    first, *rest = lines(tmp_path / "t.jsonl")
    assert (first["event"], first["machine"]) == ("trace.started", "web")
    assert [each["number"] for each in rest] == list(range(5000))


def test_threads_share_a_sink(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "t.jsonl")
    trace.subscribe("writer.*", sink)
    threads = [
        threading.Thread(target=lambda: [ticked(number) for number in range(500)], name=f"vcpu{n}") for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.unsubscribe(sink)
    sink.close()
    for name in ("vcpu0", "vcpu3"):
        mine = [each["number"] for each in lines(tmp_path / "t.jsonl") if each["thread"] == name]
        assert mine == list(range(500))


def test_a_full_queue_loses_records_and_says_how_many(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "t.jsonl", queue_limit=10)
    for number in range(100):
        sink(Record(1.0, ticked, "x", (number,)))
    sink.close()
    found = lines(tmp_path / "t.jsonl")
    kept = sum(each["event"] == "writer.ticked" for each in found)
    told = sum(int(each["count"]) for each in found if each["event"] == "trace.dropped")  # type: ignore[call-overload]
    assert (kept + told, sink.lost) == (100, told)
    assert told > 0


def test_a_chrome_file_is_whole_when_closed(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "t.json")
    sink(Record(1.0, ticked, "vcpu0", (1,)))
    sink.close()
    assert [each["name"] for each in json.loads((tmp_path / "t.json").read_text())][-1] == "writer.ticked"


def test_a_full_disk_ends_the_trace_not_the_machine() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    sink = FileSink(Path("/dev/full"), "json")
    sink(Record(1.0, ticked, "x", (1,)))
    sink.close()
    assert sink.error is not None
    sink(Record(1.0, ticked, "x", (2,)))


def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        FileSink(tmp_path / "no" / "t.jsonl")
