"""A verdict reads well where pytest shows it, and answers are split as they were asked."""

from __future__ import annotations

from pyvmm.testbed.oracles.accounting import Figures, lowers_total, parse_figures
from pyvmm.testbed.oracles.asking import MARK, Answer, parse
from pyvmm.testbed.oracles.devices import ROOT, parse_devices
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


def test_an_answer_has_files_and_the_output_of_commands() -> None:
    text = f"/sys/a/id:3\n/sys/b/id:4\n/proc/x:one: two\n/proc/x:three\nnoise\n{MARK}\n<4>line\n{MARK}\nmore\n"
    answer = parse(text)
    assert answer.files["/proc/x"] == ["one: two", "three"]
    assert answer.under("/sys/", "/id") == {"a": "3", "b": "4"}
    assert answer.output == "<4>line\nmore\n"
    assert parse("") == parse(f"{MARK}\n") == Answer()


def test_figures_of_memory_and_garbage_in_their_place() -> None:
    memory = "/sys/devices/system/memory/"
    files = {
        "/proc/meminfo": ["MemTotal:         481432 kB"],
        f"{memory}block_size_bytes": ["8000000"],
        f"{memory}memory1/state": ["offline"],
        f"{memory}memory2/state": ["online"],
        "/sys/kernel/debug/hv-balloon": ["pages_added           : 7", "pages_ballooned       : 9"],
    }
    figures = parse_figures(Answer(files))
    assert (figures.total, figures.added, figures.ballooned) == (481432 // 4, 7, 9)
    assert list(figures.offline) == [(1 << 15, 1 << 15)]
    for name in files:
        parse_figures(Answer({**files, name: ["-1", "ffffffffffffffffffffff", "x y z", ""]}))
    assert parse_figures(Answer()) == Figures()


def test_which_kernels_lower_their_total() -> None:
    assert [lowers_total(release) for release in ("5.10.0-46-cloud", "5.11", "6.1.0", "7.2", "")] == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_devices_of_the_guest_and_garbage_in_their_place() -> None:
    files = {
        f"{ROOT}a/device_id": ["{c4c1}"],
        f"{ROOT}a/id": ["1"],
        f"{ROOT}a/channels/1/subchannel_id": ["0"],
        f"{ROOT}a/channels/9/subchannel_id": ["1"],
        f"{ROOT}b/device_id": ["{dead}"],
    }
    assert parse_devices(Answer(files)) == {"c4c1": frozenset((1, 9))}
    assert parse_devices(Answer({**files, f"{ROOT}b/id": ["-1"]})) == {"c4c1": frozenset((1, 9))}
    assert parse_devices(Answer()) == {}
