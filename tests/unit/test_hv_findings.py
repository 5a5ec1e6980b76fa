"""The page of findings: made from the recorded rows, which come from runs of tests/hv."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hv.findings import DATA, PAGE, cases, load, main, merged, page, read_rows, save
from tests.hv.outcomes import KERNELS, Row, _place, _plain

PANIC = """[    1.749778] BUG: unable to handle page fault for address: ffffea1000000030
[    1.751951] Oops: 0000 [#1] PREEMPT SMP NOPTI
[    1.757855] RIP: 0010:free_balloon_pages+0x7f/0xc0 [hv_balloon]
"""


def row(case: str = "test_faults_rings.py::test_x", kernel: str = "6.1", **fields: object) -> Row:
    values = {
        "id": "V1",
        "fault": "a | b",
        "version": "6.1.192-2",
        "expected": "panic",
        "kind": "panic",
        "happened": "BUG in f",
        "as_expected": True,
    }
    return Row(case=case, kernel=kernel, **values | fields)  # type: ignore[arg-type]


def test_the_page_is_made_from_the_recorded_rows() -> None:
    assert PAGE.read_text() == page(load()), "run python -m tests.hv.findings"


def test_a_prediction_that_no_kernel_fulfils_is_told() -> None:
    unseen = row("test_faults_rings.py::test_y", id="V9", kind="right", happened="not so: it hangs", as_expected=True)
    seen = row("test_faults_rings.py::test_z", id="V7", kind="right", happened="not so: it spins")
    text = page([unseen, seen, row("test_faults_rings.py::test_z", kernel="6.12", id="V7", kind="wrong")])
    assert "Predicted, and seen on no kernel:\n\n* V9, a \\| b: not so: it hangs\n\n##" in text


def test_recorded_rows_are_of_cases_that_exist_and_kernels_that_are_known() -> None:
    rows = load()
    assert {each.case for each in rows} <= cases()
    assert {each.kernel for each in rows} <= set(KERNELS)


def test_cases_are_the_tests_of_the_fault_files(tmp_path: Path) -> None:
    (tmp_path / "test_faults_x.py").write_text("def helper(): ...\ndef test_a(): ...\n")
    (tmp_path / "test_other.py").write_text("def test_b(): ...\n")
    assert cases(tmp_path) == {"test_faults_x.py::test_a"}
    assert len(cases()) > 30


def test_a_new_row_replaces_the_old_one_of_its_case_and_kernel(tmp_path: Path) -> None:
    old, other, new = row(), row(kernel="5.10"), row(happened="survives", kind="survives")
    rows = merged([old, other], [new])
    assert rows == [other, new]
    save(rows, tmp_path / "rows.json")
    assert load(tmp_path / "rows.json") == rows
    assert load(tmp_path / "none.json") == read_rows(tmp_path / "none") == []


def test_a_row_tells_what_happened_and_what_was_expected_instead() -> None:
    text = page([row(), row(kernel="6.12", as_expected=False, kind="survives", happened="survives")])
    assert "| V1 | a \\| b | panic: BUG in f | survives **(expected: panic)** | `test_x` |" in text
    assert "| 6.1 (6.1.192-2) | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 |" in text


def test_a_log_is_told_in_a_line() -> None:
    assert _place(PANIC) == "BUG: unable to handle page fault in free_balloon_pages"
    assert _place("[ 5.92] BUG: Bad page state in process sh  pfn:05d78") == ""
    assert _plain("BUG: Bad page state in process sh  pfn:05d78") == "BUG: Bad page state"
    warning = "[ 2.1] WARNING: CPU: 0 PID: 8 at drivers/hv/channel_mgmt.c:1 vmbus_onoffer+0x1/0x2 [hv_vmbus]"
    assert _plain(warning) == "WARNING in vmbus_onoffer"


@pytest.mark.parametrize("words", [["--kernel", "9.9"], ["--no-such-option"]])
def test_wrong_words_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = DATA.read_bytes()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert DATA.read_bytes() == before
