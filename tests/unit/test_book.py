"""The book's pages, as far as they need no KVM: excerpts, order of the chapters, links, the site."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.book.chapters import BOOK, EXAMPLES, ROOT, SOLUTIONS, Chapter, chapter_of, chapters
from tests.support.book.parts import PartError, excerpt, pages, rewritten, sources

LISTED = chapters()
EXAMPLE_LINES = 60
LONGER = {"ch10_hyperv_in_200_lines.py": 200}


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_excerpts_are_what_the_source_says(page: Path) -> None:
    text = page.read_text()
    assert rewritten(text, outputs=False) == text, "python -m tests.support.book writes them anew"


def test_a_changed_excerpt_is_noticed() -> None:
    text = "<!-- code pyvmm/kvm/exits.py Hlt -->\n```python\nclass Hlt: ...\n```\n<!-- end -->"
    assert "The guest halted" in rewritten(text, outputs=False) != text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("pyvmm/kvm/exits.py NoSuchExit", "no NoSuchExit"),
        ("pyvmm/kvm/no_such_file.py Hlt", "No such file"),
        ("pyvmm/kvm/exits.py IoIn.no_such_method", "no IoIn.no_such_method"),
    ],
)
def test_an_excerpt_of_nothing_is_an_error(words: str, says: str) -> None:
    with pytest.raises(PartError, match=says):
        rewritten(f"<!-- code {words} -->\n<!-- end -->", outputs=False)


def test_an_excerpt_may_leave_out_its_docstring() -> None:
    text = '@wire\nclass A:\n    """Doc."""\n\n    a: u8\n\n    def f(self):\n        return 1\n'
    assert excerpt(text, "A", "nodoc") == "@wire\nclass A:\n\n    a: u8\n\n    def f(self):\n        return 1"
    assert excerpt(text, "A", "head") == '@wire\nclass A:\n    """Doc."""'
    assert excerpt(text, "A.f") == "def f(self):\n    return 1"
    assert excerpt(text, "A.a") == "a: u8"


@pytest.mark.parametrize("chapter", LISTED, ids=lambda each: each.page)
def test_a_chapter_has_all_its_parts(chapter: Chapter) -> None:
    text = (BOOK / chapter.page).read_text()
    assert text.startswith(f"# {chapter.number}. {chapter.title}\n")
    assert f"output docs/book/examples/{chapter.example} " in text
    assert f"code docs/book/examples/{chapter.example} " in text
    assert re.search(r"!\[.+\]\(pictures/.+\.svg\)", text), "no picture"
    solved = {f"exercise_{n}" for n in (1, 2, 3)}
    assert set(re.findall(r"exercise_\d", text)) == solved
    named = {node.name for node in ast.parse(chapter.solutions.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert solved <= named


@pytest.mark.parametrize("chapter", LISTED, ids=lambda each: each.page)
def test_an_example_is_short(chapter: Chapter) -> None:
    lines = len((EXAMPLES / chapter.example).read_text().splitlines())
    assert lines <= LONGER.get(chapter.example, EXAMPLE_LINES)


@pytest.mark.parametrize("chapter", LISTED, ids=lambda each: each.page)
def test_a_chapter_quotes_only_what_it_or_an_earlier_one_explains(chapter: Chapter) -> None:
    for path in sources((BOOK / chapter.page).read_text()):
        if not path.startswith("docs/"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            module = module if module.startswith("pyvmm") else f"pyvmm.{module}"
            explained = chapter_of(module, LISTED)
            assert explained is not None and explained <= chapter.number, f"{path}: of chapter {explained}"


def test_every_file_of_the_book_belongs_to_a_chapter() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {each.example for each in LISTED}
    assert {path.name for path in SOLUTIONS.glob("*.py")} == {each.solutions.name for each in LISTED}


def test_links_between_files_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"\w+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} -> {target}"


def test_the_site_is_built_without_a_warning_and_asks_no_other_server(tmp_path: Path) -> None:
    """Every link of the built pages, and each file that a page loads, is in the site."""
    if not shutil.which("mkdocs", path=str(Path(sys.executable).parent)):
        if os.environ.get("CI"):
            pytest.fail("MkDocs is missing: make book")
        pytest.skip("MkDocs is missing: make book installs it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {path: path.read_text() for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(built) > len(LISTED)
    ids = {path: set(re.findall(r'id="?([^"\s>]+)', html)) for path, html in built.items()}
    for path, html in built.items():
        for kind, target in re.findall(r'<(?:a|link|script|img|iframe)\b[^>]*?\b(href|src)="?([^"\s>]+)', html):
            if target.startswith(("http:", "https:", "//")):
                loaded = kind == "src" or re.search(
                    rf'<link[^>]*rel="?(?:stylesheet|preconnect)[^>]*{re.escape(target)}', html
                )
                assert not loaded, f"{path.name} loads {target}"
            elif not target.startswith(("mailto:", "data:", "javascript:")):
                name, _, anchor = target.partition("#")
                file = (path.parent / name).resolve() if name else path
                file = file / "index.html" if file.is_dir() else file
                assert file.exists(), f"{path.name} -> {target}"
                if anchor and file in ids:
                    assert anchor in ids[file], f"{path.name} -> {target}"
