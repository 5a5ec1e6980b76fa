from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.analysis import diff
from pyvmm.analysis.diff import Changed, OnlyA, OnlyB, Same, compare, summary
from pyvmm.analysis.entry import Entry
from pyvmm.analysis.read import read_trace
from pyvmm.errors import ConfigError
from pyvmm.launch.trace_events import load_events

CAPTURES = Path(__file__).parent / "captures"


def entries(*words: str) -> list[Entry]:
    """`name field=value ...` for each."""
    made = []
    for number, word in enumerate(words):
        name, *fields = word.split()
        made.append(Entry(float(number), name, "x", dict(field.split("=") for field in fields)))
    return made


def kinds(a: list[Entry], b: list[Entry], **options: object) -> list[type]:
    return [type(step) for step in compare(a, b, **options).steps]  # type: ignore[arg-type]


def test_ids_and_times_do_not_count() -> None:
    a = entries("vmbus_gpadl_header gpadl_id=1 num_gfns=8", "vmbus_post_msg type=1")
    b = entries("vmbus_gpadl_header gpadl_id=9 num_gfns=8", "vmbus_post_msg type=1")
    b[0].time = 77.0
    found = compare(a, b)
    assert found.same
    assert [type(step) for step in found.steps] == [Same, Same]


def test_another_value_is_a_change_with_both() -> None:
    a = entries("x.open status=0", "x.close")
    b = entries("x.open status=5", "x.close")
    step = compare(a, b).steps[0]
    assert isinstance(step, Changed)
    assert step.fields == {"status": ("0", "5")}


def test_a_field_can_be_ignored() -> None:
    assert compare(entries("x.open vp=0"), entries("x.open vp=1"), ignore=["vp"]).same


def test_events_more_or_less_are_shown_in_their_place() -> None:
    a = entries("x.a", "x.b", "x.c")
    b = entries("x.a", "x.c", "x.b", "x.c")
    assert kinds(a, b) == [Same, OnlyB, Same, Same]
    assert kinds(b, a) == [Same, OnlyA, Same, Same]


def test_what_one_side_never_traces_is_summed_up() -> None:
    found = compare(entries("x.a", "y.only", "y.only"), entries("x.a", "z.only"))
    assert found.same
    assert (dict(found.unknown_to_b), dict(found.unknown_to_a)) == ({"y.only": 2}, {"z.only": 1})
    assert not compare(entries("x.a", "y.only"), entries("x.a"), everything=True).same


def test_noise_counts_only_when_named() -> None:
    a, b = entries("machine.vcpu_exit exit=1"), entries("machine.vcpu_exit exit=2")
    assert compare(a, b).same
    assert not compare(a, b, patterns=["machine.*"]).same


def test_too_much_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "LIMIT", 3)
    with pytest.raises(ConfigError, match="--only"):
        compare(entries(*["x.a"] * 4), entries("x.a"))


def test_a_pyvmm_trace_compares_with_qemus_log() -> None:
    load_events()
    ours, qemu = read_trace(CAPTURES / "resize.jsonl"), read_trace(CAPTURES / "qemu.log")
    found = compare(ours.entries, qemu.entries, patterns=["vmbus_*"])
    counts = summary(found.steps)
    assert counts["same"] >= 5
    assert counts["only-b"] == counts["changed"] == 0
