"""`--initrd` with several modules: where it is split, what is refused, and how it reaches the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import ConfigError
from pyvmm.launch.boot_modules import read_modules, split_list
from pyvmm.launch.build import build_config
from pyvmm.launch.config_file import load
from pyvmm.launch.options import GuestOptions
from tests.support.tiny_multiboot import elf32, exit_with


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["a"]),
        ("a,b c=d", ["a", "b c=d"]),
        ("a,,b,c", ["a,,b", "c"]),
        ("a,,,b", ["a,,", "b"]),
        ("a,", ["a", ""]),
    ],
)
def test_a_list_is_split_at_single_commas(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


def test_modules_have_names_and_arguments(tmp_path: Path) -> None:
    (tmp_path / "with,comma").touch()
    found = read_modules(Path("/x/a b=c  d,/y/e,,f"))
    assert [(each.source, each.string) for each in found] == [(Path("/x/a"), "a b=c  d"), (Path("/y/e,f"), "e,f")]
    (whole,) = read_modules(tmp_path / "with,comma")
    assert whole.source == tmp_path / "with,comma"


@pytest.mark.parametrize("text", ["a,", ",a,b", "a, b"])
def test_an_empty_name_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"an empty name; modules are FILE\[ ARGUMENTS\], separated by commas"):
        read_modules(Path(text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "k").write_bytes(elf32(exit_with(0)))
    for name in ("one", "two", "empty"):
        (tmp_path / name).write_bytes(name.encode() if name != "empty" else b"")
    return tmp_path


def build(folder: Path, initrd: str) -> Any:
    return build_config(GuestOptions(kernel=folder / "k", initrd=Path(initrd)))


def test_a_multiboot_kernel_gets_all_its_modules(folder: Path) -> None:
    config = build(folder, f"{folder}/one,{folder}/two quiet")
    assert [(each.source, each.string) for each in config.modules] == [
        (folder / "one", "one"),
        (folder / "two", "two quiet"),
    ]
    assert config.initrd is None


@pytest.mark.parametrize(
    ("initrd", "line"),
    [
        ("{0}/one,{0}/absent", "absent"),
        ("{0}/one,{0}/empty", "the file is empty"),
        ("{0}/one,{0}/two " + "x" * 0x5000, "boot information"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_refused_before_the_boot(folder: Path, initrd: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build(folder, initrd.format(folder))


def test_a_configurations_modules_are_found_from_its_folder(folder: Path) -> None:
    (folder / "vm.toml").write_text('kernel = "k"\ninitrd = "one,two quiet"\n')
    assert load(folder / "vm.toml")["initrd"] == Path(f"{folder}/one,{folder}/two quiet")
