"""A test's time limit: its failure where it is, its end by force, and reports, which do not count."""

from __future__ import annotations

import inspect
import json
import os
import sys
import types
from pathlib import Path

import pytest

from pyvmm.testbed.plugin.source_files import name_source_files
from tests.support.pytest_runs import Run, project, run

LIMITS = """
    from pyvmm.testbed.plugin import time_limit
    time_limit.GRACE, time_limit.REPORT_LIMIT = 1.0, 3.0
"""
SAMPLE = """
    import time
    import pytest

    class Slow(Exception):
        def __str__(self):
            time.sleep(self.args[0])
            return "told slowly"

    @pytest.mark.pyvmm(timeout=0.5)
    def test_has_a_report_that_takes_longer_than_the_limits(vm):
        raise Slow(0.9)

    @pytest.mark.pyvmm(timeout=1)
    def test_has_a_report_without_end(vm):
        raise Slow(100)

    @pytest.mark.pyvmm(timeout=0.2)
    def test_does_not_end_by_its_limit(vm):
        try:
            time.sleep(100)
        except BaseException:
            time.sleep(100)

    @pytest.fixture
    def held(vm):
        yield
        time.sleep(100)

    @pytest.mark.pyvmm(timeout=0.5)
    def test_fails_and_its_fixture_has_no_end(held):
        assert False
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(project(tmp_path_factory.mktemp("limits"), conftest=LIMITS, test_limits=SAMPLE))


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("test_has_a_report_that_takes_longer_than_the_limits", "told slowly"),
        ("test_has_a_report_without_end", "was killed: the report of its failure was not made within 3 s"),
        ("test_does_not_end_by_its_limit", "was killed: it had not ended 1 s after its limit"),
        ("test_fails_and_its_fixture_has_no_end", "the test has not ended within 0.5 s"),
    ],
)
def test_a_test_ends_by_its_limits_and_its_report_has_one_of_its_own(sample: Run, test: str, text: str) -> None:
    assert text in sample.texts[test], sample.stdout


def test_the_source_of_imported_modules_is_found_without_a_look_at_other_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for table in ("modulesbyfile", "_filesbymodname"):
        monkeypatch.setattr(inspect, table, {})
    name_source_files()
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: asked.append(path) or real(path, **options))
    lines, _ = inspect.findsource(json.dumps)
    assert any("def dumps" in line for line in lines)
    made = types.FunctionType(compile("pass", "<string>", "exec"), {})
    with pytest.raises(OSError):
        inspect.findsource(made)
    assert not [path for path in asked if Path(path) != Path(json.__file__)], (asked, len(sys.modules))
