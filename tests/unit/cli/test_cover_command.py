"""`pyvmm cover`: on, report, off, the files it writes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine
from tests.support.sample_code import assemble


@pytest.fixture
def sample(machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that the guest has loaded, beside its kernel."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "image/modules").mkdir(parents=True)
    machine.kernel = str(tmp_path / "image/vmlinux")
    machine.output = b"sample/sections/.text:0xffffffffc0000000\nsample/sections/.text.unlikely:0xffffffffc0001000\n"
    return assemble(tmp_path / "image/modules")


def test_a_module_is_watched_reported_and_left(
    sample: Path, machine: FakeMachine, pyvmm: Run, tmp_path: Path
) -> None:
    done = pyvmm("cover", "web", "sample")
    assert (done.status, done.out) == (0, "sample: breakpoints in 7 of 11 blocks\n"), done.err
    assert pyvmm("cover", "on", "--name", "web", str(sample), "--json").status == 0
    assert list(machine.covered) == ["sample"]
    done = pyvmm("cover", "report", "web", "--missed")
    assert "sample: 2 of " in done.out
    assert " start " in done.out
    assert "did not run:" in done.out
    facts = json.loads(pyvmm("cover", "report", "--json", "--missed").out)
    assert (facts[0]["module"], facts[0]["covered"]) == ("sample", 2)
    assert len(facts[0]["missed"]) == facts[0]["blocks"] - 2
    assert "call kmalloc" in pyvmm("cover", "report", "web", "--function", "start").out
    kept, page, table = (tmp_path / name for name in ("run.json", "run.html", "run.drcov"))
    done = pyvmm("cover", "off", "web", "--save", str(kept), "--html", str(page), "--drcov", str(table))
    assert done.status == 0, done.err
    assert machine.covered == {}
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert table.read_bytes().startswith(b"DRCOV VERSION: 2\n")
    assert "sample: 2 of " in pyvmm("cover", "report", str(kept), str(kept)).out


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (["cover", "nope", "hv_balloon"], "no VM named 'nope'", 1),
        (["cover", "web"], "name the modules", 2),
        (["cover", "web", "other"], "no file of the module other around", 1),
        (["cover", "web", "/nowhere/x.ko"], "/nowhere/x.ko: no such file", 1),
        (["cover", "web", "a b"], "no file of the module a b", 1),
        (["cover", "web", "sample", "--modules", "/nowhere"], "no file of the module sample in /nowhere", 1),
        (["cover", "report"], "coverage is not on: `pyvmm cover on hv_balloon` begins it", 1),
        (["cover", "report", "web", "x.json"], "either a machine, or files", 2),
        (["cover", "report", "web", "more"], "one machine, or files", 2),
        (["cover", "report", "/nowhere/x.json"], "/nowhere/x.json", 1),
        (["cover", "off"], "coverage is not on", 1),
    ],
)
def test_bad_input_is_one_line_with_the_next_step(
    sample: Path, pyvmm: Run, words: list[str], text: str, status: int
) -> None:
    done = pyvmm(*words)
    assert (done.status, len(done.err.splitlines())) == (status, 1), done.err
    assert text in done.err


def test_bad_output_is_one_line(sample: Path, pyvmm: Run) -> None:
    assert pyvmm("cover", "web", "sample").status == 0
    for words, text in (
        (["--function", "nope"], "no function nope in sample"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html: No such file"),
        (["--lcov", "/nowhere/x.info"], "has no debug information"),
        (["--rules", "/nowhere/x.toml"], "/nowhere/x.toml: No such file"),
        (["--least", "sample"], "'sample' is no goal: write MODULE=PERCENT"),
        (["--least", "sample=99"], "too little coverage: sample"),
    ):
        done = pyvmm("cover", "report", "web", *words)
        assert (done.status, text in done.err.splitlines()[-1]) == (1, True), done.err


def test_blocks_that_cannot_run_are_left_out(sample: Path, pyvmm: Run, tmp_path: Path) -> None:
    assert pyvmm("cover", "web", "sample").status == 0
    rules = tmp_path / "rules.toml"
    rules.write_text('[[unreachable]]\nhas = "call panic"\nwhy = "it never panics"\n')
    done = pyvmm("cover", "report", "web", "--rules", str(rules), "--missed", "--least", "sample=0")
    assert done.status == 0
    assert "reachable blocks of sample" in done.out
    assert "1 blocks of sample cannot run:\n  start.cold: it never panics" in done.out
    found = json.loads(pyvmm("cover", "report", "web", "--rules", str(rules), "--json").out)
    assert found[0]["reachable"]["blocks"] == found[0]["blocks"] - 1


def test_a_module_that_the_guest_has_not_loaded_is_said(sample: Path, machine: FakeMachine, pyvmm: Run) -> None:
    machine.output = b""
    done = pyvmm("cover", "web", "sample")
    assert (done.status, done.err.splitlines()[-1]) == (1, "pyvmm: the guest has not loaded the module sample")
    machine.state = "paused"
    assert "resume it first" in pyvmm("cover", "web", "sample").err
