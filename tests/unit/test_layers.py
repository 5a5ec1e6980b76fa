"""The order of the layers, listed in docs/layers.toml: imports go down only, and without a circle."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import pytest

from tests.support.book.chapters import EXAMPLES, SOLUTIONS, Chapter, chapter_of, chapters
from tests.support.layers import PICTURE, layers, picture

ROOT = Path(__file__).parents[2]
LINKED = ("devices", "firmware", "images")  # packages in folders of their own, to which links in pyvmm/ lead
LONG_FILE = 450  # lines; a file past some 400 usually holds two ideas

LAYERS = layers()
STARTERS = {"pyvmm.__main__": "pyvmm.cli"}  # `python -m pyvmm` is the command line, wherever it lies
DOOR = "pyvmm"  # names the API's classes for `from pyvmm import Machine`, and imports them only then

PLACES = (ROOT / "pyvmm", *(ROOT / "pyvmm" / name for name in LINKED))
FILES = sorted({path for place in PLACES for path in place.rglob("*.py")})


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer_of(module: str) -> tuple[int, str]:
    """(row, package) of a module of ours, which has a row of its own or is a single module of `pyvmm`."""
    module = STARTERS.get(module, module)
    package = ".".join(module.split(".")[:2])
    if not any(package in row for row in LAYERS):
        assert package == module, f"{package}: in no layer of docs/layers.toml"
        package = DOOR
    return next((number, package) for number, row in enumerate(LAYERS) if package in row)


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Our modules that a file imports; with `top_only` just those imported when it is."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())

    def visit(node: ast.AST) -> None:
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                found.update(f"{module}.{a.name}" if f"{module}.{a.name}" in MODULES else module for a in names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if top_only:
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if top_only:
                return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {DOOR}))
def test_imports_go_down_only(module: str) -> None:
    row, package = layer_of(module)
    for imported in imports(MODULES[module]):
        other_row, other_package = layer_of(imported)
        assert other_package == package or other_row > row, f"{module} imports {imported}, which is not below it"


def test_every_package_has_a_row_and_every_row_its_packages() -> None:
    packages = {".".join(module.split(".")[:2]) for module in MODULES if module.count(".") > 1} | {DOOR}
    listed = {package for row in LAYERS for package in row}
    assert packages <= listed <= MODULES.keys()


def test_the_picture_shows_the_list() -> None:
    assert PICTURE.read_text() == picture(), "docs/layers.svg is stale: python -m tests.support.layers"


CHAPTERS = chapters()
STARTS = ("pyvmm", "pyvmm.kvm.__main__")  # the door, which imports nothing of ours, and demos


def test_no_chapter_of_the_book_imports_what_a_later_one_explains() -> None:
    """docs/book/chapters.toml names what each chapter explains; modules that none names are helpers."""
    for module, path in MODULES.items():
        chapter = chapter_of(module, CHAPTERS)
        if chapter is not None:
            for imported in imports(path) - set(STARTS):
                other = chapter_of(imported, CHAPTERS)
                assert other is None or other <= chapter, f"{module} (chapter {chapter}): {imported} is of {other}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda each: each.page)
def test_an_example_of_the_book_uses_only_what_was_explained(chapter: Chapter) -> None:
    """Packages and modules of its own chapter and of earlier ones; and examples of earlier chapters."""
    for path in (EXAMPLES / chapter.example, SOLUTIONS / f"ch{chapter.number:02}.py"):
        for imported in imports(path) - set(STARTS):
            other = chapter_of(imported, CHAPTERS)
            assert other is not None and other <= chapter.number, f"{path.name}: {imported} is of chapter {other}"
        for number in re.findall(r"^(?:import|from) ch(\d\d)_", path.read_text(), re.MULTILINE):
            assert int(number) <= chapter.number


def test_every_name_in_the_list_of_chapters_exists() -> None:
    named = [name for chapter in CHAPTERS for name in chapter.code]
    assert set(named) <= MODULES.keys()
    assert len(set(named)) == len(named)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imports(path, top_only=True) - {module} for module, path in MODULES.items()}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module]):
                # A package's __init__ naming its own parts, and a part importing a sister through it, is no circle.
                if not module.startswith(imported + ".") and not imported.startswith(module + "."):
                    walk(imported, (*way, module))
            done.add(module)

    for module in sorted(graph):
        walk(module, ())


def test_the_door_imports_nothing_of_ours() -> None:
    assert not imports(MODULES[DOOR], top_only=True)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_it_is(module: str) -> None:
    path = MODULES[module]
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{module} has no docstring"


def test_devices_import_neither_kvm_nor_the_machine() -> None:
    for module, path in MODULES.items():
        if module.startswith("pyvmm.devices"):
            bad = [i for i in imports(path) if i.startswith(("pyvmm.kvm", "pyvmm.machine"))]
            assert not bad, f"{module} imports {bad}"


def test_files_stay_short_enough_to_hold_one_idea() -> None:
    """A warning, not a failure: a maintainer should look."""
    for path in FILES:
        lines = len(path.read_text().splitlines())
        if lines > LONG_FILE:
            warnings.warn(f"{path.relative_to(ROOT)} has {lines} lines: two ideas?", stacklevel=1)
