"""The book's examples and solutions, run as a reader runs them, and what its pages say that they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyvmm.kvm import Kvm
from tests.support.book import pictures
from tests.support.book.chapters import BOOK, EXAMPLES, PICTURES, ROOT, chapters
from tests.support.book.parts import run

pytestmark = pytest.mark.kvm

LISTED = chapters()
_OUTPUT = re.compile(r"<!-- output (\S+) -->\s+```text\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def _needs_kvm(kvm: Kvm) -> None:
    """Skip where there is no /dev/kvm."""


def _outputs() -> Iterator[tuple[str, str, str]]:
    for page in sorted(BOOK.glob("*.md")):
        for path, text in _OUTPUT.findall(page.read_text()):
            yield page.name, path, text


@pytest.mark.parametrize(("page", "path", "text"), _outputs())
def test_an_example_prints_what_its_page_says(page: str, path: str, text: str) -> None:
    done = run(ROOT / path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text.strip(), f"{page} is stale: python -m tests.support.book"


@pytest.fixture
def solutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A chapter's solutions, freshly imported: they change their example as they like."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    path: Path = request.param.solutions
    spec = importlib.util.spec_from_file_location(f"book_solutions_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - before:
        if name.startswith("ch"):
            del sys.modules[name]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("solutions", LISTED, indirect=True, ids=lambda each: each.page)
def test_a_solution_is_right(solutions: ModuleType, number: int) -> None:
    getattr(solutions, f"exercise_{number}")()


@pytest.mark.parametrize("name", pictures.DRAWN)
def test_a_picture_shows_what_the_example_does(name: str) -> None:
    assert pictures.DRAWN[name]() == (PICTURES / name).read_text(), "python -m tests.support.book draws it anew"
