"""What was seen, merged and kept; figures, text, page and the other programs' forms."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm.cover.export import drcov, lcov
from pyvmm.cover.figures import Figures
from pyvmm.cover.guest import Layout, parse_sections, sections_command
from pyvmm.cover.lines import NO_LINES, read_lines
from pyvmm.cover.page import page
from pyvmm.cover.program import Program
from pyvmm.cover.record import Record, Seen, merged, parse_record
from pyvmm.cover.report import lines, summary
from pyvmm.cover.returns import find_calls
from pyvmm.cover.store import load_program
from pyvmm.cover_sites import pack_hits, pack_sites, parse_hits, parse_sites
from pyvmm.errors import ConfigError
from pyvmm.files import FileError
from tests.support.sample_code import assemble

TOLD = "noise\nsample/sections/.text:0xffffffffc0000000\r\nsample/sections/.text.unlikely:0xffffffffc0001000\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return load_program(assemble(tmp_path))


def seen(program: Program, *numbers: int) -> Seen:
    placed = {n for n, block in enumerate(program.blocks) if block.candidates and block.kind == "code"}
    return Seen("sample", program.build_id, "6.1.0", len(program.blocks), placed, set(numbers))


def by_text(program: Program, text: str) -> int:
    return next(n for n, each in enumerate(program.listing()) if each[0].text.startswith(text))


def test_blocks_without_a_breakpoint_are_inferred_or_not_counted(program: Program) -> None:
    after, warn = by_text(program, "mov eax, 0xfff"), by_text(program, "ud2")
    assert Figures(program, seen(program)).states[warn] == "missed"
    figures = Figures(program, seen(program, after))
    assert (figures.states[after], figures.states[warn]) == ("seen", "inferred")
    assert "loading" in figures.states, ".init.text ran when it was loaded"
    assert figures.covered == 3
    blind = seen(program)
    blind.placed.clear()
    assert Figures(program, blind).counted == 1


def test_tracepoints_glue_counts_on_request(program: Program) -> None:
    with_glue = Figures(program, seen(program), glue=True)
    assert {each.name for each in with_glue.functions} - {
        each.name for each in Figures(program, seen(program)).functions
    } == {"trace_event_raw_event_x"}


def test_the_text_lists_functions_and_what_did_not_run(program: Program) -> None:
    first = program.blocks[0]
    text = "\n".join(lines(Figures(program, seen(program, 0)), missed=True))
    assert "sample (6.1.0): 2 of" in text
    assert "  start " in text
    assert (
        f"{program.label(program.blocks[2])}, behind the call of kmalloc in start+0x9" in text or "start+0x12" in text
    )
    listing = "\n".join(lines(Figures(program, seen(program, 0)), function="start"))
    assert f"{program.label(first)}: seen" in listing
    assert "call kmalloc" in listing


def test_the_page_is_whole_in_itself_and_escapes_names(program: Program) -> None:
    listing = program.listing()
    listing[0][0] = listing[0][0]._replace(text="<script>")
    text = page("sample", [(Figures(program, seen(program, 0)), NO_LINES)])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert not [word for word in ("http:", "https:", "src=", "@import", "url(") if word in text]
    assert text.count("<details>") == len(Figures(program, seen(program)).functions)


def test_records_are_merged_by_build_id_and_kept(program: Program) -> None:
    one, two = Record(), Record()
    one.add(seen(program, 0, 1))
    two.add(seen(program, 1, 2))
    two.add(Seen("other", "ff", "6.1.0", 1, {0}, set()))
    total = parse_record(merged([one, two]).to_json(), "x.json")
    assert total.runs == 2
    assert total.modules[program.build_id].seen == {0, 1, 2}
    assert total.modules["ff"].blocks == 1
    assert one.modules[program.build_id].seen == {0, 1}, "unchanged"


GOOD = {"module": "m", "build-id": "ff", "kernel": "", "blocks": 2, "placed": [0], "seen": [1]}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "runs": 1, "modules": []}', '{"format": 1, "runs": 1, "modules": [1]}']
    + [
        json.dumps({"format": 1, "runs": 1, "modules": [GOOD | bad]})
        for bad in ({"seen": [2]}, {"seen": [-1]}, {"seen": ["0"]}, {"blocks": -1}, {"blocks": 1 << 40})
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(FileError, match=r"^x\.json: no coverage [^\n]*$"):
        parse_record(text, "x.json")


def test_drcov_has_the_blocks_that_ran_by_offset_in_the_file(program: Program) -> None:
    data = drcov([Figures(program, seen(program, 0, 3))], "pyvmm")
    head, _, table = data.partition(b" bbs\n")
    assert head.startswith(b"DRCOV VERSION: 2\nDRCOV FLAVOR: pyvmm\nModule Table: version 2, count 1\n")
    found = list(struct.iter_unpack("<IHH", table))
    block = program.blocks[0]
    assert (program.file_offsets[block.section] + block.offset, block.size, 0) in found
    assert head.endswith(f"BB Table: {len(found)}".encode())


def test_lcov_has_lines_where_the_file_has_debug_information(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "other"))
    path = assemble(tmp_path, "debugged", debug=True)
    program, found = load_program(path), read_lines(path)
    first = program.blocks[0]
    line = found.at(first.section, first.offset + 5)
    assert line is not None
    assert (tmp_path / "debugged.s").read_text().splitlines()[line.line - 1].split()[0] == "test"
    cold = by_text(program, "mov edi, 1")
    block = program.blocks[cold]
    cold_line = found.at(block.section, block.offset)
    assert cold_line is not None
    assert "mov $1" in (tmp_path / "debugged.s").read_text().splitlines()[cold_line.line - 1], "of another section"
    text = lcov([(Figures(program, seen(program, 0)), found)])
    assert f"SF:{tmp_path / 'debugged.s'}\n" in text
    assert f"DA:{line.line},1\n" in text
    assert f"DA:{cold_line.line},0\n" in text
    assert text.endswith("end_of_record\n")


def test_a_function_has_the_line_of_its_own_source_though_its_code_begins_in_a_header(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    inline = 'static inline void drop(int *p) { __asm__ volatile("lock decl %0" : "+m"(*p)); }'
    (tmp_path / "drop.h").write_text(inline)
    (tmp_path / "own.c").write_text('#include "drop.h"\nint count;\nvoid own(void)\n{ drop(&count); }\n')
    subprocess.run(["gcc", "-g", "-O2", "-c", "own.c", "-o", "own.ko"], cwd=tmp_path, check=True)
    lines = read_lines(tmp_path / "own.ko")
    text = min(start for start, line in zip(lines.starts, lines.lines, strict=True) if line is not None) >> 48
    here, function = lines.at(text, 0), lines.of_function(text, 0)
    assert here is not None and here.file.endswith("drop.h")
    assert function is not None and (function.file, function.line) == (str(tmp_path / "own.c"), 4)


def test_lcov_without_debug_information_is_one_line(program: Program, tmp_path: Path) -> None:
    assert not read_lines(tmp_path / "sample.ko")
    with pytest.raises(ConfigError, match="no debug information: a built tree has some"):
        lcov([(Figures(program, seen(program)), NO_LINES)])


def test_breakpoints_are_placed_by_the_guests_addresses(program: Program) -> None:
    command = sections_command([program])
    assert "sample/sections/.text sample/sections/.text.unlikely" in command
    assert ".init" not in command
    found = parse_sections(TOLD)
    layout = Layout.of(program, found)
    sites = layout.sites()
    assert sites[0] == (0xFFFFFFFFC0000005, b"\x85\xff")
    kinds = [block.why_none or block.kind for block, site in zip(program.blocks, sites, strict=True) if site is None]
    assert kinds == ["ud2", "jump label", "one byte left", "init"]
    assert len(layout.exits()) == 1
    shifted = Layout(program, {name: at + 2 for name, at in layout.sections.items()})
    assert shifted.sites()[0] == (0xFFFFFFFFC0000009, b"\x74\x13"), "not across two words"


def test_a_module_that_is_not_loaded_or_hidden_is_said(program: Program) -> None:
    with pytest.raises(ConfigError, match="has not loaded the module sample"):
        Layout.of(program, {})
    with pytest.raises(Exception, match="hides the addresses of sample"):
        Layout.of(program, parse_sections("sample/sections/.text:0x0000000000000000"))


def test_sites_and_hits_pass_the_monitor() -> None:
    sites = [(0xFFFFFFFFC0000005, b"\x85\xff"), None, (0xFFFFFFFFC0001000, None)]
    exits = [0xFFFFFFFFC0002000]
    base, text = pack_sites(sites, exits)
    assert base < 0, "a signed number, as QMP has"
    assert parse_sites(base, text) == (sites, exits)
    assert parse_hits(pack_hits(3, {0, 2}, {2})) == (3, {0, 2}, {2})
    with pytest.raises(ConfigError, match="more than 4 GiB apart"):
        pack_sites([(0, None), (1 << 33, None)], [])


@pytest.mark.parametrize("text", ["", "%", "AAAA", "é", pack_hits(8, set(), set())[:-8], pack_hits(5, set(), set())])
def test_damaged_sites_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_sites(0, text)


def test_more_sites_than_a_module_has_are_refused() -> None:
    _, text = pack_sites([None] * 70000, [])
    with pytest.raises(ConfigError, match="too long"):
        parse_sites(0, text)


@pytest.mark.parametrize(
    ("callee", "function", "words"),
    [
        ("vmalloc", "", "sample does not call vmalloc$"),
        ("kmalloc_node", "", "does not call kmalloc_node; it calls kmalloc$"),
        ("kmalloc", "cleanup_module", "calls kmalloc not in cleanup_module, but in start$"),
        ("kmalloc", "inlined", "calls kmalloc not in inlined, but in start$"),
        ("vmalloc", "start", "start of sample does not call vmalloc; it calls kmalloc, panic$"),
        ("vmalloc", "inlined", "no function inlined: it may be inlined in its callers$"),
    ],
)
def test_a_call_that_there_is_not_is_answered_with_those_there_are(
    program: Program, callee: str, function: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        find_calls(program, callee, function)


def test_calls_are_found_by_wildcards(program: Program) -> None:
    assert [call.callee for call in find_calls(program, "*malloc*", "st*")] == ["kmalloc"]
    assert "sample" in summary(Figures(program, seen(program)))
