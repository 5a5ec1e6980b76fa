"""`pyvmm explain` as a user sees it."""

from __future__ import annotations

import json

from tests.support.command_line import Run


def test_the_command_shows_an_entry(pyvmm: Run) -> None:
    found = pyvmm("explain", "HV_X64_MSR_SIMP")
    assert found.status == 0
    assert found.out.splitlines()[0] == "0x40000083 HV_X64_MSR_SIMP  Hyper-V MSR"
    assert 'TLFS, "SIMP Register"' in found.out
    assert "pyvmm/hyperv/user.py:" in found.out
    assert "\x1b" not in found.out


def test_the_command_counts_several_meanings(pyvmm: Run) -> None:
    found = pyvmm("explain", "0x40000000")
    assert found.out.endswith("2 meanings; --kind shows one of them\n")


def test_the_command_lists_the_kinds(pyvmm: Run) -> None:
    found = pyvmm("explain")
    assert (found.status, found.err) == (0, "")
    assert "HvCallSignalEvent" in found.out


def test_the_command_prints_json(pyvmm: Run) -> None:
    (entry,) = json.loads(pyvmm("explain", "--json", "--kind", "msr", "0x40000083").out)
    assert (entry["name"], entry["number"], entry["kind"]) == ("SIMP", 0x40000083, "msr")
    assert entry["handled"][0]["path"] == "pyvmm/hyperv/user.py"


def test_an_unknown_word_is_one_line(pyvmm: Run) -> None:
    found = pyvmm("explain", "nonsense\n\x1b[2J")
    assert (found.status, found.out) == (1, "")
    assert found.err.count("\n") == 1 and "\x1b" not in found.err


def test_an_unknown_kind_is_a_usage_error(pyvmm: Run) -> None:
    assert pyvmm("explain", "--kind", "nonsense", "5").status == 2
