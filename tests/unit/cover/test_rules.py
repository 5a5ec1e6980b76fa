"""What a report knows beside the blocks: those that cannot run, parts of a module, least percentages."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cover.figures import Figures
from pyvmm.cover.goals import missed_goals, parse_goals
from pyvmm.cover.program import Program
from pyvmm.cover.record import Seen
from pyvmm.cover.report import lines
from pyvmm.cover.rules import parse_rules, read_rules
from pyvmm.cover.store import load_program
from pyvmm.errors import ConfigError
from pyvmm.files import FileError
from tests.support.sample_code import BUILD_ID, assemble

BLOCKS = Path(__file__).parents[2] / "hv" / "blocks.toml"
RULES = """
[[unreachable]]
has = "call panic"
why = "it never panics"
[[unreachable]]
module = "sample"
kernel = "6.1"
at = ["cleanup_module"]
why = "it stays"
[[part]]
module = "sample"
name = "end"
functions = ["cleanup_*"]
[[part]]
module = "sample"
name = "work"
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return load_program(assemble(tmp_path))


def figures(program: Program, *seen: int, kernel: str = "6.1.0-56", rules: str = RULES) -> Figures:
    total = len(program.blocks)
    return Figures(
        program,
        Seen("sample", BUILD_ID, kernel, total, set(range(total)), set(seen)),
        rules=parse_rules(rules, "rules"),
    )


def test_blocks_that_cannot_run_are_counted_apart(program: Program) -> None:
    found = figures(program, 0)
    assert sorted(found.reasons.values()) == ["it never panics", "it stays"]
    assert found.reached().reachable == found.counted - 2
    assert not set(found.missed()) & set(found.unreachable())
    text = "\n".join(lines(found, missed=True))
    assert "2 blocks of sample cannot run:\n  start.cold: it never panics\n  cleanup_module: it stays" in text
    assert f"reachable blocks of sample     2 of {found.counted - 2:4}" in text


def test_a_rule_is_for_its_kernel(program: Program) -> None:
    assert list(figures(program, kernel="6.12.1").reasons.values()) == ["it never panics"]
    assert list(figures(program, kernel="6.10.0").reasons.values()) == ["it never panics"]


def test_a_part_has_its_functions_and_the_last_one_the_rest(program: Program) -> None:
    parts = figures(program, 0, kernel="6.12.1").parts()
    assert set(parts) == {"end", "work"}
    assert (parts["end"].reachable, parts["end"].covered) == (1, 0)


def test_rules_that_do_not_fit_the_module_are_told(program: Program) -> None:
    rules = '[[unreachable]]\nat = ["start+0x999", "cleanup_module"]\nhas = "vmcall"\nwhy = "x"\n'
    found = figures(program, 0, rules=rules)
    assert found.wrong == ["sample has no block start+0x999", "cleanup_module of sample has no 'vmcall'"]
    assert "  rules: sample has no block start+0x999" in list(lines(found))
    ran = figures(program, 0, rules='[[unreachable]]\nat = ["start"]\nwhy = "x"\n')
    assert ran.wrong == ["start ran: the rules say that it cannot"] and not ran.reasons


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x = [", "rules: not TOML: "),
        ("[missed]\n", "'missed' is no table of rules: \\[\\[unreachable\\]\\] and \\[\\[part\\]\\] are"),
        ("unreachable = [1]", "number 1: not a table"),
        ("[[unreachable]]\nhas = 'x'\n", "\\[\\[unreachable\\]\\] number 1: 'why' is missing"),
        ("[[unreachable]]\nwhy = 'x'\n", "it names no blocks, by 'at' or 'has'"),
        ("[[unreachable]]\nwhy = 'x'\nat = 'start'\n", "'at' is a list of texts"),
        ("[[unreachable]]\nwhy = 'x'\nhas = '('\n", "'has' is no regular expression"),
        ("[[unreachable]]\nwhy = 'x'\nwhere = 'y'\n", "'where' is not known: module, kernel, at, has, why are"),
        ("[[part]]\nname = 'x'\n", "\\[\\[part\\]\\] number 1: 'module' is missing"),
        ("[[part]]\nname = 1\n", "'name' is a text"),
    ],
)
def test_a_wrong_file_of_rules_is_one_line(text: str, error: str) -> None:
    with pytest.raises(FileError, match=error) as caught:
        parse_rules(text, "rules")
    assert "\n" not in str(caught.value)


def test_the_drivers_rules_can_be_read() -> None:
    rules = read_rules(BLOCKS)
    assert rules.part("hv_vmbus", "vmbus_onoffer") == rules.part("hv_vmbus", "vmbus_isr.cold") == "protocol"
    assert rules.part("hv_vmbus", "in_mask_show") == "sysfs and debugfs"
    assert rules.part("hv_balloon", "balloon_up") == ""


def test_goals_are_compared_by_module_and_part(program: Program) -> None:
    found = [figures(program, 0, kernel="6.12.1")]
    assert missed_goals(parse_goals("sample=10, sample:work=10, sample@6.12=10"), found) == []
    assert missed_goals(parse_goals("sample@6.1=0"), found) == ["sample@6.1: no such module was covered"]
    wrong = missed_goals(parse_goals("sample=90,sample:end=1,sample:x=1,other=1"), found)
    percent = found[0].reached().percent
    assert wrong == [
        f"sample (6.12.1): {percent:.1f} % of the blocks ran, wanted 90 %",
        "sample:end (6.12.1): 0.0 % of the blocks ran, wanted 1 %",
        "sample:x (6.12.1): the rules name no such part",
        "other: no such module was covered",
    ]


@pytest.mark.parametrize("text", ["sample", "sample=", "sample=much", "=5", "sample=101", "sample=-1", "a:b"])
def test_a_wrong_goal_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="is no goal: write MODULE=PERCENT, MODULE:PART=PERCENT or"):
        parse_goals(text)
