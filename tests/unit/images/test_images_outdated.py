"""A forgotten `make`: sources and headers of a build tree that are newer than what was built of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.images.kdir import open_kdir
from pyvmm.images.outdated import module_make, module_notes, outdated_notes, sources
from tests.support import sample_kernels as kernels
from tests.support.sample_modules import module

HV = "drivers/hv"
FILES = ("hv_balloon.c", "hyperv_vmbus.h", "hv_balloon.o", "hv_balloon.ko")


def command(name: str, *needs: str) -> str:
    """Return what kbuild writes to .NAME.o.cmd."""
    lines = [f"savedcmd_{name} := gcc -c -o {name}", "", f"source_{name} := {needs[0]}", "", f"deps_{name} := \\"]
    lines += ["    $(wildcard include/config/MEMORY_HOTPLUG) \\", *(f"  {need} \\" for need in needs[1:])]
    return "\n".join([*lines, "", f"{name}: $(deps_{name})", "", f"$(deps_{name}):", ""])


def age(path: Path, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_800_000_000 - seconds,) * 2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which hv_balloon.ko was built of two files, and nothing has changed since."""
    top = tmp_path / "tree"
    (top / "include/config").mkdir(parents=True)
    for number, name in enumerate(FILES):
        age(top / HV / name, 100 - number)
    age(top / "include/linux/hyperv.h", 100)
    needs = (f"{HV}/hv_balloon.c", f"{HV}/hyperv_vmbus.h", "include/linux/hyperv.h", "include/generated/gone.h")
    (top / HV / ".hv_balloon.o.cmd").write_text(command(f"{HV}/hv_balloon.o", *needs))
    return top


@pytest.mark.parametrize("name", [f"{HV}/hv_balloon.c", f"{HV}/hyperv_vmbus.h", "include/linux/hyperv.h"])
def test_a_source_or_header_that_was_changed_after_the_build_is_noted(tree: Path, name: str) -> None:
    assert outdated_notes(tree, [HV], []) == []
    age(tree / name, 0)
    assert outdated_notes(tree, [HV], []) == [
        f"{name} changed since the last build: run `make -C {tree}`, for modules `make M={HV}`"
    ]


def test_an_object_that_was_not_linked_into_its_module_is_noted(tree: Path) -> None:
    age(tree / HV / "hv_balloon.o", 0)  # `make drivers/hv/hv_balloon.o`
    assert outdated_notes(tree, [HV], []) == []
    [note] = outdated_notes(tree, [HV], ["hv_balloon", "hv_utils"])
    assert note.startswith("drivers/hv/hv_balloon.o changed")


def test_sources_outside_the_folder_of_the_build_are_named_from_their_own_top(tree: Path, tmp_path: Path) -> None:
    top = tmp_path / "linux"
    age(top / HV / "hv_balloon.c", 0)
    (tree / "source").symlink_to(top)
    (tree / HV / ".hv_balloon.o.cmd").write_text(command(f"{HV}/hv_balloon.o", f"{top}/{HV}/hv_balloon.c"))
    [note] = outdated_notes(tree, [HV], [])
    assert note.startswith("drivers/hv/hv_balloon.c changed")


def test_paths_of_a_module_built_alone_start_in_its_folder(tree: Path) -> None:
    (tree / HV / ".hv_balloon.o.cmd").write_text(
        command("hv_balloon.o", "hv_balloon.c", "../../include/linux/hyperv.h")
    )
    age(tree / "include/linux/hyperv.h", 0)
    [note] = outdated_notes(tree, [HV], [])
    assert note.startswith("include/linux/hyperv.h changed")


@pytest.mark.parametrize(
    ("release", "separate", "words"),
    [
        ("6.12.117", True, "modules"),
        ("6.13.0", True, "M=source/drivers/hv MO=drivers/hv"),
        ("7.3.4-mine", True, "M=source/drivers/hv MO=drivers/hv"),
        ("7.3.4-mine", False, "M=drivers/hv"),
        ("next", True, "modules"),
        ("9" * 5000, True, "modules"),
    ],
)
def test_the_command_for_one_folder_works_in_this_tree(tree: Path, release: str, separate: bool, words: str) -> None:
    (tree / "include/config/kernel.release").write_text(f"{release}\n")
    if separate:
        (tree / "source").mkdir()
    assert module_make(tree, HV) == words


def test_many_files_are_counted(tree: Path) -> None:
    needs = [f"include/linux/{name}.h" for name in "abcde"]
    (tree / HV / ".hv_balloon.o.cmd").write_text(command(f"{HV}/hv_balloon.o", f"{HV}/hv_balloon.c", *needs))
    for need in needs:
        age(tree / need, 0)
    [note] = outdated_notes(tree, [HV], [])
    assert note.startswith("include/linux/a.h, include/linux/b.h, include/linux/c.h and 2 more changed")


def test_a_module_file_is_compared_with_the_tree_that_it_lies_in(tree: Path) -> None:
    assert module_notes(tree / HV / "hv_balloon.ko") == []
    age(tree / HV / "hv_balloon.c", 0)
    [note] = module_notes(tree / HV / "hv_balloon.ko")
    assert note.startswith("drivers/hv/hv_balloon.c changed")
    assert module_notes(Path("/hv_balloon.ko")) == []


def test_a_kdir_notes_it_for_its_drivers_and_for_further_modules(tree: Path) -> None:
    (tree / "vmlinux").write_bytes(kernels.vmlinux())
    age(tree / HV / "hv_balloon.c", 0)
    uio = tree / "drivers/uio"
    age(uio / "uio_hv.c", 0)
    age(uio / "uio_hv.o", 50)
    (uio / "uio_hv.ko").write_bytes(module("uio_hv"))
    age(uio / "uio_hv.ko", 40)
    (uio / ".uio_hv.o.cmd").write_text(command("drivers/uio/uio_hv.o", "drivers/uio/uio_hv.c"))
    assert [note.split()[0] for note in open_kdir(tree).notes] == ["drivers/hv/hv_balloon.c"]
    notes = open_kdir(tree, extra=("uio-hv",)).notes
    assert [note.split()[0] for note in notes] == ["drivers/hv/hv_balloon.c", "drivers/uio/uio_hv.c"]


@pytest.mark.parametrize("text", ["", "source_x.o := ", "source_x.o := a.c", "\0" * 50, "deps_x.o := \\\n  a.h \\\n"])
def test_a_damaged_command_file_names_nothing_that_is_there(tree: Path, text: str) -> None:
    (tree / HV / ".hv_balloon.o.cmd").write_text(text)
    assert outdated_notes(tree, [HV], ["hv_balloon"]) == []


def test_a_path_that_no_file_can_have_is_left_out(tree: Path) -> None:
    text = command(f"{HV}/hv_balloon.o", f"{HV}/hv_balloon.c", "include/\0.h", "include/" + "x" * 5000)
    (tree / HV / ".hv_balloon.o.cmd").write_text(text)
    assert outdated_notes(tree, [HV], []) == []
    assert len(sources(text, str(tree / HV), "hv_balloon.o")) == 3
