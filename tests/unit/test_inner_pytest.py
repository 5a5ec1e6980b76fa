"""The boot tests' way into the emulated host, with an ordinary process in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.testbed.plugin import where
from tests.support import inner_pytest
from tests.support.inner_pytest import Died, InnerPytest, Stalled

INNER = """
import os
def test_passes(): pass
def test_fails(): assert [1] == [2]
def test_skips():
    import pytest
    pytest.skip("no reason")
def test_kills_its_host(): os._exit(7)
def test_never_runs(): pass
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inner") / "test_inner_sample.py"
    path.write_text(INNER)
    return path


@pytest.fixture(scope="module")
def inner(file: Path) -> Iterator[InnerPytest]:
    made = InnerPytest([str(file)], launcher=("env", "--"))
    yield made
    made.close()


def outcomes(inner: InnerPytest, name: str) -> list[tuple[str, str]]:
    nodeid = f"::{name}"  # how pytest calls what lies outside of the root
    return [(report["when"], report["outcome"]) for report in inner.reports(nodeid)]


@pytest.mark.parametrize(
    ("name", "result"), [("test_passes", "passed"), ("test_fails", "failed"), ("test_skips", "skipped")]
)
def test_reports_come_back_as_they_are(inner: InnerPytest, name: str, result: str) -> None:
    assert outcomes(inner, name) == [("setup", "passed"), ("call", result), ("teardown", "passed")]


@pytest.mark.parametrize("name", ["test_kills_its_host", "test_never_runs"])
def test_when_the_inner_pytest_dies_the_rest_fails_with_its_status(inner: InnerPytest, name: str) -> None:
    with pytest.raises(Died, match="ended with status 7"):
        outcomes(inner, name)


def test_one_that_never_begins_is_given_up_and_its_log_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_pytest, "START_LIMIT", 0.2)
    script = "import sys, time; print('booting', flush=True); time.sleep(60)"
    inner = InnerPytest(["x"], launcher=(sys.executable, "-c", script))
    try:
        with pytest.raises(Died, match=r"(?s)no test began within 0 s.*its output ends"):
            list(inner.reports("x"))
        assert inner._process.poll() is not None
    finally:
        inner.close()
    assert not inner.folder.exists()


def test_a_blocked_host_is_distinguished_from_a_hung_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_pytest, "STALL_LIMIT", 0.5)
    script = (
        "import os, time; open(os.environ['PYVMM_BOOT_HEART'], 'w').close();"
        'open(os.environ[\'PYVMM_BOOT_REPORTS\'], \'a\').write(\'{"kind": "started", "nodeid": "x"}\\n\');'
        "time.sleep(60)"
    )
    inner = InnerPytest(["x"], launcher=(sys.executable, "-c", script))
    try:
        with pytest.raises(Stalled, match="stood still"):
            list(inner.reports("x"))
        assert inner._process.poll() is not None
    finally:
        inner.close()


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
    assert inner_pytest.what_is_missing(emulated=True).startswith("qemu-system-x86_64 is not installed")


def test_tests_are_cut_into_chunks_where_the_file_ends_or_the_parameters_change() -> None:
    def tests(file: str, parameter: str, count: int) -> list[str]:
        return [f"{file}::test_{n}{parameter}" for n in range(count)]

    small = tests("a.py", "", 3)
    first, second, third = (tests("b.py", f"[{p}]", inner_pytest.CHUNK // 2) for p in "xyz")
    large = tests("c.py", "", inner_pytest.CHUNK + 5)
    assert inner_pytest.chunks([*small, *first, *second, *third, *large]) == [small, first + second, third, large]
    assert inner_pytest.chunks([]) == []
