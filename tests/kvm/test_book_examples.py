"""The book's examples and solutions, run as a reader runs them, and what its pages say that they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyvmm.kvm import Kvm
from tests.support.book import pictures
from tests.support.book.chapters import BOOK, PICTURES, ROOT, Chapter, chapters
from tests.support.book.parts import run

pytestmark = [pytest.mark.kvm, pytest.mark.own_process]

LISTED = chapters()
_OUTPUT = re.compile(r"<!-- output (\S+) -->\s+```text\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def _needs_kvm(kvm: Kvm) -> None:
    """Skip where there is no /dev/kvm."""


def _outputs() -> Iterator[tuple[str, str, str]]:
    for page in sorted(BOOK.glob("*.md")):
        for path, text in _OUTPUT.findall(page.read_text()):
            yield page.name, path, text


@pytest.mark.parametrize(("page", "path", "text"), list(_outputs()))
def test_an_example_prints_what_its_page_says(page: str, path: str, text: str) -> None:
    done = run(ROOT / path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text.strip(), f"{page} is stale: python -m tests.support.book"


@pytest.mark.parametrize("chapter", LISTED, ids=lambda each: each.page)
def test_the_solutions_of_a_chapter_are_right(chapter: Chapter) -> None:
    """Each in a process of its own, as a reader starts it; chapter 11 forks. It ends by calling all three."""
    text = chapter.solutions.read_text()
    calls = text[text.index('if __name__ == "__main__":') :]
    assert [f"exercise_{number}()" in calls for number in (1, 2, 3)] == [True] * 3
    done = run(chapter.solutions)
    assert done.returncode == 0, done.stderr


DRAW = """
import json
from tests.support.book.pictures import DRAWN

print(json.dumps({name: draw() for name, draw in DRAWN.items()}))
"""


def test_pictures_show_what_the_examples_do() -> None:
    """Drawn in a process of their own: the examples start machines, threads and traces that last."""
    done = subprocess.run([sys.executable, "-c", DRAW], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    drawn = json.loads(done.stdout.splitlines()[-1])
    assert drawn.keys() == pictures.DRAWN.keys() and drawn
    stale = [name for name, text in drawn.items() if (PICTURES / name).read_text() != text]
    assert not stale, "python -m tests.support.book draws them anew"
