"""A verdict reads well where pytest shows it, and answers are split as they were asked."""

from __future__ import annotations

from pyvmm.testbed.oracles.asking import MARK, split
from pyvmm.testbed.oracles.oracle import Finding
from pyvmm.testbed.oracles.verdict import Verdict


def test_a_verdict_is_true_only_without_findings() -> None:
    assert Verdict()
    assert (repr(Verdict()), str(Verdict())) == ("<survived>", "the guest survived")
    verdict = Verdict((Finding("log", "oops: at 3", "RIP: 5\nCall Trace:"), Finding("hang", "vCPU 0 spins")))
    assert not verdict
    assert repr(verdict) == "<2 found: log: oops: at 3; hang: vCPU 0 spins>"
    assert str(verdict) == "log: oops: at 3\n    RIP: 5\n    Call Trace:\nhang: vCPU 0 spins"
    assert [each.line for each in verdict.of("hang")] == ["vCPU 0 spins"]


def test_a_long_verdict_fits_into_what_pytest_shows() -> None:
    verdict = Verdict(tuple(Finding("log", "x" * 300) for _ in range(5)))
    assert len(repr(verdict)) <= 240
    assert repr(verdict).startswith("<5 found: log: xxx")


def test_answers_are_split_by_their_marks() -> None:
    assert split(f"{MARK}log\n<4>one\n{MARK}hang\n{MARK}x\ny\nz\n") == {"log": "<4>one\n", "hang": "", "x": "y\nz\n"}
    assert split("") == split("noise") == {}
