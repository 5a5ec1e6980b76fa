"""`pyvmm explain` as a user sees it."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

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


def test_bytes_are_decoded_with_their_place_in_the_code(pyvmm: Run) -> None:
    found = pyvmm("explain", "0f000000", "00000000", "01000000", "00000500")
    assert found.out.startswith("VERSION_RESPONSE  VMBus message, 16 bytes\n")
    assert "+12  00 00 05 00                connection_id  0x50000" in found.out
    assert "pyvmm/vmbus/server.py:" in found.out


def test_digits_that_are_no_bytes_may_be_a_number(pyvmm: Run) -> None:
    assert "0xc000000d" in pyvmm("explain", "c000000d").out
    assert pyvmm("explain", "0d00000000000000").out.startswith("RELID_RELEASED  VMBus message")


def test_bytes_come_from_standard_input_and_files(
    pyvmm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "00000000: 0f00 0000 0000 0000 0100 0000 0000 0500  ........\n"
    monkeypatch.setattr("sys.stdin", StringIO(text))
    piped = pyvmm("explain", "-")
    (tmp_path / "dump").write_text(text)
    assert pyvmm("explain", str(tmp_path / "dump")) == piped
    assert piped.status == 0


def test_bytes_in_json(pyvmm: Run) -> None:
    (reading,) = json.loads(pyvmm("explain", "--json", "0f000000000000000100000000000500").out)
    assert (reading["name"], reading["entry"]["symbol"]) == ("VERSION_RESPONSE", "CHANNELMSG_VERSION_RESPONSE")
    assert reading["parts"][1]["fields"][0] == {
        "offset": 8,
        "bytes": "01",
        "name": "supported",
        "form": "u8",
        "value": 1,
        "meaning": "",
    }


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("deadbeefdeadbeef00",), 1),
        (("--as", "message", "zz"), 1),
        (("--as", "nonsense", "0f00"), 1),
        (("--as", "message"), 2),
        (("/nonexistent/file",), 1),
        (("./",), 1),
    ],
)
def test_bad_bytes_are_one_line(pyvmm: Run, words: tuple[str, ...], status: int) -> None:
    found = pyvmm("explain", *words)
    assert (found.status, found.out, found.err.count("\n")) == (status, "", 1)


def test_the_forms_are_listed(pyvmm: Run) -> None:
    assert "hv-balloon" in pyvmm("explain", "--as", "help").out


def test_many_meanings_are_one_line_each(pyvmm: Run) -> None:
    found = pyvmm("explain", "6")
    assert found.out.splitlines()[0].startswith("KIND")
    assert max(map(len, found.out.splitlines())) < 160
