"""`--pyvmm-cover` in sample projects: what is refused, what is summed up from templates, and the summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cover.record import read_record
from tests.support.pytest_runs import project, run
from tests.support.sample_code import BUILD_ID, assemble

TESTS = """
    def test_one(vm):
        vm.hit(0)

    def test_two(vm):
        vm.hit(4)

    def test_three(vm):
        vm.hit(0)
        assert False
"""
CONFTEST = """
from pathlib import Path
from pyvmm.cover.record import Record, Seen
from pyvmm.testbed.plugin import cover
import mmap

class Templates:
    def __init__(self, guest):
        assert guest.covered == ["sample"]
        self.hits, self.told = guest.hits, -1

    def news(self):
        seen = {n for n, hit in enumerate(self.hits[:11]) if hit}
        if len(seen) == self.told:
            return None
        self.told = len(seen)
        record = Record()
        record.add(Seen("sample", "BUILD_ID", "6.1.0", 11, set(range(11)), seen))
        return record.to_json()

cover.TemplateCoverage = Templates
cover.Collector.prepare = lambda self, kernel, say: None
import pyvmm.testbed.plugin.templates as templates
templates.TemplateCoverage = Templates
templates.VM.hits = mmap.mmap(-1, 16)
templates.VM.hit = lambda self, number: self.hits.__setitem__(number, 1)
""".replace("BUILD_ID", BUILD_ID)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--pyvmm-cover-html", "x.html"), "--pyvmm-cover-html needs --pyvmm-cover MODULES"),
        (("--pyvmm-cover-save", "x.json"), "--pyvmm-cover-save needs --pyvmm-cover MODULES"),
        (("--pyvmm-cover-lcov", "x.info"), "--pyvmm-cover-lcov needs --pyvmm-cover MODULES"),
        (("--pyvmm-cover-least", "sample=1"), "--pyvmm-cover-least needs --pyvmm-cover MODULES"),
        (("--pyvmm-cover", "sample", "--pyvmm-cover-least", "sample"), "'sample' is no goal"),
        (("--pyvmm-cover", "sample", "--pyvmm-cover-least", "x=1"), "x is not among --pyvmm-cover's modules"),
        (("--pyvmm-cover", "sample", "--pyvmm-cover-rules", "nothing.toml"), "nothing.toml: No such file"),
        (("--pyvmm-cover", ","), "--pyvmm-cover needs modules: --pyvmm-cover hv_balloon,hv_vmbus"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    done = run(project(tmp_path, test_x="def test_x(): pass"), *words)
    assert (done.status, text in done.last) == (4, True), done.stderr


def test_a_missing_disassembler_is_one_line(tmp_path: Path) -> None:
    project(tmp_path, test_x="def test_x(): pass")
    (tmp_path / "capstone.py").write_text("raise ImportError\n")
    done = run(tmp_path, "--pyvmm-cover", "hv_balloon", "-o", "pythonpath=.")
    assert (done.status, "pip install 'pyvmm[cover]'" in done.last) == (4, True), done.stderr


def test_hits_of_all_tests_are_summed_up_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm.cover.store import load_program

    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    load_program(assemble(tmp_path))
    project(tmp_path, conftest=CONFTEST, test_it=TESTS)
    done = run(tmp_path, "--pyvmm-cover", "sample", "--pyvmm-cover-save", "seen.json", "--pyvmm-cover-html", "p.html")
    assert done.outcomes == {"test_one": "passed", "test_two": "passed", "test_three": "failure"}, done.stdout
    assert "coverage of the guests' modules" in done.stdout
    assert "sample (6.1.0): 3 of" in done.stdout
    assert read_record(tmp_path / "seen.json").modules[BUILD_ID].seen == {0, 4}
    assert (tmp_path / "p.html").read_text().startswith("<!DOCTYPE html>")


def test_too_little_coverage_fails_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm.cover.store import load_program

    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    load_program(assemble(tmp_path))
    project(tmp_path, conftest=CONFTEST, test_it=TESTS)
    (tmp_path / "rules.toml").write_text('[[unreachable]]\nhas = "call panic"\nwhy = "it never panics"\n')
    words = ("-k", "not three", "--pyvmm-cover", "sample", "--pyvmm-cover-rules", "rules.toml")
    enough = run(tmp_path, *words, "--pyvmm-cover-least", "sample=20", "--pyvmm-cover-lcov", "x.info")
    assert enough.status == 0, enough.stdout
    assert "reachable blocks of sample" in enough.stdout
    assert "no debug information" in enough.stdout
    little = run(tmp_path, *words, "--pyvmm-cover-least", "sample=99")
    assert little.status == 1
    assert "too little coverage: sample (6.1.0): " in little.stdout
