"""The self-test's run, table and report, with steps that need no guest."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import HostError
from pyvmm.sandbox import confine
from pyvmm.selftest import report, run
from pyvmm.selftest.facts import facts
from pyvmm.selftest.rows import Outcome, Row, StepFailed, StepSkipped
from pyvmm.selftest.run import FULL, QUICK, Plan, SelfTest, ratios
from pyvmm.selftest.steps import STEPS


class FakeVm:
    """Lives until a step ends it."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.running = True
        self.answers = True
        self.console = "one\ntwo\n"

    def run(self, command: str, *, timeout: float) -> None:
        if not self.answers:
            raise HostError("no answer")

    def __enter__(self) -> FakeVm:
        return self

    def __exit__(self, *unused: object) -> None:
        self.running = False


class FakeKvm:
    def __enter__(self) -> FakeKvm:
        return self

    def __exit__(self, *unused: object) -> None:
        pass


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a self-test whose steps are functions of the guest; returns its rows and what was shown."""

    def one(
        steps: dict[str, Any], lacking: dict[str, list[str]] | None = None, *, confined: bool = False
    ) -> tuple[list[Row], list[str]]:
        lacks = lacking or {}
        monkeypatch.setattr(run, "Machine", FakeVm)
        monkeypatch.setattr(run, "Kvm", FakeKvm)
        monkeypatch.setattr(run, "CHECKS", {})
        monkeypatch.setattr(run, "STEPS", steps)
        monkeypatch.setattr(run, "ENGINES", {"kernel": "kernel", "user": "user"})
        monkeypatch.setattr(run, "missing", lambda kvm, needed: lacks.get(needed, []))
        shown: list[str] = []
        test = SelfTest(
            Path("k"),
            Path("i"),
            (Plan("user", 1, tuple(steps), confined),),
            lambda row, done: shown.append(f"{row.name} {row.status if done else '...'}"),
        )
        test.run()
        return test.rows, shown

    return one


def fine(guest: Any) -> Outcome:
    return Outcome("fine", {"n": 1})


def bad(guest: Any) -> Outcome:
    raise StepFailed("3 instead of 4")


def broken(guest: Any) -> Outcome:
    raise KeyError("actual")


def ends(guest: Any) -> Outcome:
    guest.vm.running = False
    raise HostError("the machine has ended")


def test_rows_are_shown_before_and_after(play: Any) -> None:
    rows, shown = play({"boot": fine, "out": fine})
    assert shown == ["boot ...", "boot ok", "out ...", "out ok"]
    assert [(row.group, row.detail, row.figures) for row in rows] == [("user engine, 1 vCPU", "fine", {"n": 1})] * 2


def test_a_failed_step_keeps_trace_and_console_and_the_next_is_tried(play: Any) -> None:
    rows, _ = play({"boot": fine, "out": bad, "back": fine})
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert (rows[1].detail, rows[1].console) == ("3 instead of 4", ["one", "two"])


def test_a_bug_in_pyvmm_is_a_failed_step_with_its_place(play: Any) -> None:
    rows, _ = play({"boot": fine, "out": broken, "back": fine})
    assert rows[1].status == "failed"
    assert rows[1].detail == "KeyError: 'actual'"
    assert any("test_selftest.py" in line and "broken" in line for line in rows[1].trace)


def hangs(guest: Any) -> Outcome:
    guest.vm.answers = False
    raise StepFailed("still in state Idle")


@pytest.mark.parametrize(("step", "why"), [(hangs, "the guest does not answer"), (ends, "the guest has ended")])
def test_steps_after_a_guest_s_end_are_skipped(play: Any, step: Any, why: str) -> None:
    rows, _ = play({"boot": fine, "out": step, "back": fine, "panic": fine})
    assert [row.status for row in rows] == ["ok", "failed", "skipped", "skipped"]
    assert {row.detail for row in rows[2:]} == {why}


def test_a_step_that_cannot_be_done_here_is_skipped(play: Any) -> None:
    def absent(guest: Any) -> Outcome:
        raise StepSkipped("no AVX")

    rows, _ = play({"boot": absent})
    assert (rows[0].status, rows[0].detail) == ("skipped", "no AVX")


def test_an_engine_that_this_kvm_lacks_is_skipped_by_the_capability_s_name(play: Any) -> None:
    rows, _ = play({"boot": fine}, {"user": ["KVM_CAP_SIGNAL_MSI"]})
    assert (rows[0].status, rows[0].detail) == ("skipped", "this KVM lacks KVM_CAP_SIGNAL_MSI")


@pytest.mark.parametrize(
    ("emulated", "without", "status"),
    [(False, [], "ok"), (True, [], "ok"), (False, [("Landlock", "")], "skipped")],
)
def test_a_confined_guest_runs_where_it_can(
    play: Any, monkeypatch: pytest.MonkeyPatch, emulated: bool, without: list[Any], status: str
) -> None:
    monkeypatch.setattr(confine, "missing", lambda: without)
    monkeypatch.setattr(run, "inside", lambda: emulated)
    options: list[dict[str, Any]] = []

    def look(guest: Any) -> Outcome:
        options.append(guest.vm.options)
        return Outcome("")

    rows, _ = play({"boot": look}, confined=True)
    assert (rows[0].group, rows[0].status) == ("confined, in a process of its own", status)
    assert [(each["process"], each["sandbox"]) for each in options] == [(True, "require")] * (status == "ok")


def test_quick_has_every_step_and_both_engines() -> None:
    assert {name for plan in QUICK for name in plan.steps} == set(STEPS)
    assert {plan.engine for plan in QUICK} == {"kernel", "user"}
    assert {(plan.engine, plan.cpus) for plan in FULL if plan.steps == tuple(STEPS)} == {
        ("kernel", 1),
        ("kernel", 2),
        ("user", 1),
        ("user", 2),
    }


ROWS = [
    Row("KVM", "speed", "ok", 0.1, "fast"),
    Row("kernel engine, 1 vCPU", "boot", "ok", 2.0, "up", {"boot": 2.0}),
    Row("user engine, 1 vCPU", "boot", "ok", 3.0, "up"),
    Row("user engine, 1 vCPU", "out", "failed", 1.0, "on HOST", {}, ["vmbus_x 1"], ["Linux says"]),
    Row("user engine, 1 vCPU", "kexec", "skipped", 0.0, "no"),
]


def test_boot_times_are_compared() -> None:
    assert ratios(ROWS) == {"boot, user engine / kernel engine, 1 vCPU": 1.5}


@pytest.mark.parametrize("name", ["r.json", "r.txt"])
def test_the_report_has_all_rows_and_no_names_of_users(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "wonderland")
    monkeypatch.setenv("USER", "alice")
    rows = [*ROWS, Row("user engine, 1 vCPU", "x", "failed", 0.0, "alice on wonderland: /home/alice/vm")]
    made = report.build(rows, emulated=True, outside="no KVM", complete=False)
    path = tmp_path / name
    report.write(made, path)
    text = path.read_text()
    assert not [word for word in ("alice", "wonderland") if word in text]
    for word in ("vmbus_x 1", "Linux says", "no KVM", "speed", "kexec"):
        assert word in text
    if name.endswith("json"):
        assert json.loads(text)["counts"] == {"ok": 3, "failed": 2, "skipped": 1}
    else:
        assert "3 ok, 2 failed, 1 skipped; interrupted (in the emulated host" in text


def test_a_text_report_has_no_control_characters_of_the_guest(tmp_path: Path) -> None:
    row = Row(
        "user engine, 1 vCPU", "boot", "failed", 0.0, "\x1b[2Jgone", {"clock\x07": "tsc"}, [], ["\x1b]0;title\x07"]
    )
    report.write(report.build([row], emulated=False, outside="", complete=True), tmp_path / "r.txt")
    text = (tmp_path / "r.txt").read_text()
    assert not {"\x1b", "\x07"} & set(text)
    assert "gone" in text


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    made = report.build([], emulated=False, outside="", complete=True)
    with pytest.raises(HostError, match="--report FILE names another place"):
        report.write(made, tmp_path / "nowhere" / "r.txt")


@pytest.mark.parametrize(("place", "why"), [("nowhere/r.txt", "there is no folder"), ("", "it is a folder")])
def test_an_unwritable_report_path_is_refused_before_the_work(tmp_path: Path, place: str, why: str) -> None:
    with pytest.raises(HostError, match=f"{why}.*--report FILE"):
        report.check_place(tmp_path / place)


def test_facts_need_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm.selftest import facts as module

    def none() -> None:
        raise HostError("cannot open /dev/kvm")

    monkeypatch.setattr(module, "Kvm", none)
    found = facts()
    assert found["kvm"]["error"] == "cannot open /dev/kvm"
    assert json.loads(json.dumps(found))["cpu"]["processors"] > 0


@pytest.mark.parametrize("plan", [*run.FULL, *run.QUICK], ids=lambda plan: plan.title)
def test_each_plan_gives_memory_back_before_it_adds_some(plan: Plan) -> None:
    steps = plan.steps
    if "hot-add" in steps and "balloon out" in steps:
        assert steps.index("balloon out") < steps.index("balloon back") < steps.index("hot-add")
