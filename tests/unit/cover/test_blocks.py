"""Blocks of a module: found in a small one that gcc assembles, and counted in Debian's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from pyvmm.cover.descent import analyse
from pyvmm.cover.elf import module_image
from pyvmm.cover.program import Block, Program
from pyvmm.cover.store import build_id, cached, find_module, find_program, load_program
from pyvmm.errors import ConfigError
from pyvmm.paths import cache_folder
from tests.support.sample_code import BUILD_ID, assemble
from tests.support.sample_modules import module

REAL = {
    # module, kernel: blocks, of these without tracing glue, places for a breakpoint missing
    ("hv_balloon", "5.10"): (325, 295, 4),
    ("hv_balloon", "6.1"): (370, 344, 7),
    ("hv_balloon", "6.12"): (375, 348, 7),
    ("hv_vmbus", "5.10"): (1998, 1445, 19),
    ("hv_vmbus", "6.1"): (2138, 1629, 22),
    ("hv_vmbus", "6.12"): (2177, 1646, 21),
    ("hv_utils", "5.10"): (503, 503, 13),
    ("hv_utils", "6.1"): (600, 600, 13),
    ("hv_utils", "6.12"): (510, 510, 10),
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return load_program(assemble(tmp_path))


def text(program: Program, block: Block) -> list[str]:
    return [each.text for each in program.listing()[program.blocks.index(block)]]


def named(program: Program) -> dict[str, Block]:
    return {program.label(block): block for block in program.blocks}


def test_blocks_begin_at_jumps_targets_and_behind_them(program: Program) -> None:
    blocks = [block for block in program.blocks if block.function == "start" and block.kind == "code"]
    first, call, warn, after, label, lock, end, cold = blocks
    assert [text(program, each)[-1].split()[0] for each in blocks] == [
        "je", "jne", "ud2", "jmp", "nop", "xor", "ret", "call"
    ]  # fmt: skip
    number = program.blocks.index
    assert first.next == sorted([number(call), number(label)])
    assert warn.next == [number(after)], "a WARN runs on"
    assert label.next == sorted([number(lock), number(end)]), "what a jump label may jump to"
    assert cold.next == [], "panic does not return"
    assert text(program, call) == ["call kmalloc", "test rax, rax", "jne start+0x21"]
    assert program.sections[cold.section] == ".text.unlikely"


def test_no_breakpoint_goes_where_the_kernel_writes(program: Program) -> None:
    blocks = named(program)
    first = blocks["start"]
    assert [each.offset for each in first.candidates] == [5, 7], "behind ftrace's call"
    assert first.candidates[0].expected == "85ff"
    warn = next(each for each in program.blocks if each.why_none == "ud2")
    assert not warn.candidates
    assert [text(program, program.blocks[n])[0] for n in warn.evidence] == ["mov eax, 0xfffffff4"]
    label = next(each for each in program.blocks if each.why_none == "jump label")
    assert len(label.evidence) == 2
    lock = next(each for each in program.blocks if text(program, each)[0].startswith("lock"))
    assert [each.offset for each in lock.candidates] == [lock.offset + 3], "behind the lock prefix"


def test_instructions_of_one_byte_are_the_last_choice(program: Program) -> None:
    block = named(program)["cleanup_module"]
    assert [(each.offset - block.offset, each.whole) for each in block.candidates] == [
        (1, True),
        (0, False),
        (6, True),
    ]
    assert program.exits == ["cleanup_module"]


def test_bytes_that_loading_changes_are_not_expected(program: Program) -> None:
    block = named(program)["cleanup_module"]
    assert block.candidates[0].expected == "", "a relocated call"


def test_glue_of_tracepoints_and_init_code_are_told_apart(program: Program) -> None:
    kinds = {block.function: block.kind for block in program.blocks}
    assert (kinds["trace_event_raw_event_x"], kinds["init"], kinds["start"]) == ("tracing", "init", "code")
    assert all(program.blocks[n].kind != "tracing" for n in program.counted)


def test_calls_are_known_by_function_and_callee(program: Program) -> None:
    calls = [(call.function, call.callee) for call in program.calls]
    assert calls == [("start", "kmalloc"), ("cleanup_module", "start"), ("start", "panic")]


def test_an_analysis_is_kept_by_build_id(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sample.ko"
    assert build_id(path.read_bytes()) == program.build_id == BUILD_ID
    assert cached(BUILD_ID) == program
    monkeypatch.setattr("pyvmm.cover.descent.analyse", lambda image: pytest.fail("it is in the cache"))
    assert load_program(path) == program
    kept = cache_folder("cover", f"{BUILD_ID}.json")
    for damaged in ("", "{", "[]", '{"format": 1}', kept.read_text().replace('"format": ', '"format": -')):
        kept.write_text(damaged)
        assert cached(BUILD_ID) is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", module("m"), b"\x7fELF\x02\x01\x01" + b"\xff" * 200])
def test_another_file_than_a_module_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.ko").write_bytes(data)
    with pytest.raises(ConfigError, match=r"m\.ko: [^\n]*$"):
        load_program(tmp_path / "m.ko")


def test_a_damaged_module_is_refused_or_read_but_raises_nothing_else(tmp_path: Path) -> None:
    whole = assemble(tmp_path).read_bytes()
    for at in range(0, len(whole), 37):
        with suppress(ConfigError):
            analyse(module_image(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :], "x", "x"))
    for size in range(0, len(whole), 211):
        with pytest.raises(ConfigError, match=r"^[^\n]*$"):
            analyse(module_image(whole[:size], "x", "x"))


def test_a_missing_disassembler_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(__import__("sys").modules, "capstone", None)
    with pytest.raises(ConfigError, match=r"coverage needs capstone.*pip install 'pyvmm\[cover\]'"):
        load_program(assemble(tmp_path))


def test_a_module_is_found_by_name_around_the_kernel_or_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "image/modules").mkdir(parents=True)
    file = assemble(tmp_path / "image/modules")
    assert find_module("sample", tmp_path / "image/vmlinux") == file
    assert find_module(str(file), tmp_path) == file
    assert find_module("sample", Path("/nowhere/vmlinux"), tmp_path / "image/modules") == file
    with pytest.raises(ConfigError, match="no file of the module other around"):
        find_module("other", tmp_path / "image/vmlinux")
    with pytest.raises(ConfigError, match=r"no module sampel around .*: did you mean sample\?"):
        find_module("sampel", tmp_path / "image/vmlinux")
    with pytest.raises(ConfigError, match=r"no module hv_vmbuss in .*: did you mean hv_vmbus\?"):
        find_module("hv_vmbuss", Path("/nowhere/vmlinux"), tmp_path / "image/modules")
    with pytest.raises(ConfigError, match="no such file"):
        find_module("/nowhere/other.ko", tmp_path)


@pytest.mark.parametrize(("name", "kernel"), REAL)
def test_debians_modules_have_the_blocks_that_were_counted(name: str, kernel: str) -> None:
    files = sorted(cache_folder("kernels").glob(f"linux-image-{kernel}.*/modules/{name}.ko"))
    if not files or kernel not in ("5.10", "6.1", "6.12"):
        pytest.skip(f"no {name} of {kernel} in the image cache")
    known = {"5.10": "5.10.262", "6.1": "6.1.192", "6.12": "6.12.117"}[kernel]
    if not any(known in str(file) for file in files):
        pytest.skip(f"the image cache has another {kernel} than {known}")
    program = load_program(next(file for file in files if known in str(file)))
    blocks, without_glue, blind = REAL[name, kernel]
    assert len(program.blocks) == blocks
    assert sum(block.kind != "tracing" for block in program.blocks) == without_glue
    assert sum(not program.blocks[number].candidates for number in program.counted) == blind
    assert all(block.size >= 2 for block in program.blocks)
    starts = {block.place for block in program.blocks}
    assert not any(place.plus(1) in starts for place in starts), "no block begins at another's second byte"


def test_a_module_in_the_kernel_is_found_by_the_kernels_own_symbols() -> None:
    """hv_vmbus of Debian's 7.2, whose vmlinux has no symbol table."""
    found = sorted(cache_folder("kernels").glob("linux-image-7.2.*/vmlinux"))
    if not found:
        pytest.skip("no kernel 7.2 in the image cache")
    program = find_program("hv_vmbus", found[-1])
    functions = {block.function for block in program.blocks}
    assert program.builtin
    assert {"vmbus_onmessage", "hv_ringbuffer_read", "relid2channel", "hv_synic_init"} <= functions
    assert not {"hv_balloon_debug_show", "start_kernel", "vmgenid_plaform_driver_exit"} & functions
    assert 2000 < len(program.blocks) < 3000
    assert sum(not program.blocks[number].candidates for number in program.counted) < 40
    assert "__kmalloc_cache_noprof" in {call.callee for call in program.calls}
