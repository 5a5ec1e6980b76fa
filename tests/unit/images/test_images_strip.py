"""Removing debugging information from modules, compared with what binutils read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pyvmm.images.modules import modinfo_value
from pyvmm.images.strip import SIGNED, strip_debug
from tests.support.sample_modules import module

SOURCE = """
static const char info[] __attribute__((section(".modinfo"), used)) = "name=sample";
static int counter __attribute__((aligned(64)));
int first(int x) { return x + counter; }
int second(int x) { return first(x) * 2; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or shutil.which("readelf") is None:
        pytest.skip("needs gcc and readelf")
    folder = tmp_path_factory.mktemp("strip")
    (folder / "a.c").write_text(SOURCE)
    subprocess.run(["gcc", "-g", "-c", "a.c", "-o", "a.ko"], cwd=folder, check=True)
    return folder / "a.ko"


def read(file: Path, *what: str) -> list[str]:
    return subprocess.run(
        ["readelf", "-W", *what, file], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_code_symbols_and_relocations_stay(compiled: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "a.ko"
    stripped.write_bytes(strip_debug(compiled.read_bytes()))
    assert stripped.stat().st_size < compiled.stat().st_size
    assert read(stripped, "-s") == read(compiled, "-s")
    assert read(stripped, "-x", ".text") == read(compiled, "-x", ".text")
    assert not any(" .debug" in line and "NULL" not in line for line in read(stripped, "-S"))
    for name in (".rela.text", ".rela.eh_frame"):
        assert _relocations(stripped, name) == _relocations(compiled, name) != []


def _relocations(file: Path, name: str) -> list[str]:
    """Return readelf's lines about one section of relocations."""
    found, inside = [], False
    for line in read(file, "-r"):
        if line.startswith("Relocation section"):
            inside = f"'{name}'" in line
        elif inside and line:
            found.append(line)
    return found


def test_information_about_the_module_is_found_as_before(compiled: Path) -> None:
    assert modinfo_value(strip_debug(compiled.read_bytes()), "name") == "sample"


def test_a_signed_module_stays_as_it_is(compiled: Path) -> None:
    signed = compiled.read_bytes() + SIGNED
    assert strip_debug(signed) == signed


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, bytes(300), module("a")[:150], module("a")]
)
def test_what_has_no_debugging_information_stays_as_it_is(data: bytes) -> None:
    assert strip_debug(data) == data
