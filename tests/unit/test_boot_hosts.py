"""Tests without a guest of ours in an inner pytest, and the chunks in which boot tests are given to such."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.testbed.plugin import where
from pyvmm.testbed.plugin.inner_process import InnerProcess, Job
from tests.support import boot_hosts

SAMPLE = """
import os, warnings
import pytest

@pytest.fixture(scope="module")
def shared():
    yield []
    warnings.warn("the module's fixture has ended")

def test_passes(shared): shared.append(1)
def test_fails(shared): assert shared == [2]
def test_skips(): pytest.skip("no reason")
def test_kills_its_process(): os._exit(7)
def test_runs_in_another(shared): assert not shared
"""
Messages = dict[str, list[dict[str, Any]]]
NAMES = ("passes", "fails", "skips", "kills_its_process", "runs_in_another")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Messages]:
    folder = tmp_path_factory.mktemp("inner")
    (folder / "test_sample.py").write_text(SAMPLE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    ids = [f"test_sample.py::test_{name}" for name in NAMES]
    inner = InnerProcess(Job(["-q"], str(folder), [str(folder / "test_sample.py")], ids, list(sys.path)))
    try:
        for nodeid, following in zip(ids, [*ids[1:], None], strict=True):
            inner.ask(nodeid, following=following)
        inner.wait_ready()
        yield {name: list(inner.answers(60)) for name in NAMES}
    finally:
        inner.close()


@pytest.mark.parametrize(
    ("name", "result"),
    [("passes", "passed"), ("fails", "failed"), ("skips", "skipped"), ("runs_in_another", "passed")],
)
def test_tests_asked_for_ahead_have_their_reports(messages: Messages, name: str, result: str) -> None:
    reports = [each["report"] for each in messages[name] if each["kind"] == "report"]
    assert [(each["when"], each["outcome"]) for each in reports] == [
        ("setup", "passed"), ("call", result), ("teardown", "passed"),
    ]  # fmt: skip
    assert messages[name][-1]["kind"] == "finished"


def test_fixtures_of_a_module_are_shared_and_end_with_its_last_test(
    messages: Messages,
) -> None:
    assert "assert [1] == [2]" in str(messages["fails"])
    ended = [name for name in NAMES if any(each["kind"] == "warning" for each in messages[name])]
    assert ended == ["runs_in_another"]


def test_a_test_that_kills_its_process_ends_alone(messages: Messages) -> None:
    last = messages["kills_its_process"][-1]
    assert (last["kind"], last["text"]) == ("died", "the process that ran the test ended: status 7")


@pytest.mark.parametrize(
    ("variables", "required"), [({}, False), ({"CI": "true"}, True), ({"PYVMM_REQUIRE_BOOT": "1"}, True)]
)
def test_ci_does_not_take_a_skip_for_an_answer(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], required: bool
) -> None:
    for name in ("CI", "PYVMM_REQUIRE_BOOT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert where.required() is required


def test_a_missing_qemu_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert boot_hosts.what_is_missing(emulated=True).startswith("qemu-system-x86_64 is not installed")


def test_tests_are_cut_into_chunks_by_number_where_files_end_or_parameters_change() -> None:
    def tests(file: str, parameter: str, count: int) -> list[str]:
        return [f"{file}::test_{n}{parameter}" for n in range(count)]

    small, more = tests("a.py", "", 3), tests("aa.py", "", 4)
    first, second, third = (tests("b.py", f"[{p}]", boot_hosts.CHUNK // 2) for p in "xyz")
    large = tests("c.py", "", boot_hosts.CHUNK + 5)
    cut = [small + more, first + second, third, large]
    assert boot_hosts.chunks([*small, *more, *first, *second, *third, *large]) == cut
    assert boot_hosts.chunks([*large, *small, *more]) == [large, small + more]
    assert boot_hosts.chunks([]) == []
