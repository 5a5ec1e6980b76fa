"""The examples of docs/api.md, run in their order in one namespace; what they print is compared with the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
_BLOCK = re.compile(
    r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", re.MULTILINE | re.DOTALL
)
EXAMPLES = [pytest.param(*found, id=found[0]) for found in _BLOCK.findall(PAGE.read_text())]


@pytest.fixture(scope="module")
def namespace() -> Iterator[dict[str, Any]]:
    made: dict[str, Any] = {}
    yield made
    if "vm" in made:
        made["vm"].close()


def matches(expected: str, printed: str) -> bool:
    """Whether they are the same, `...` standing for anything within a line."""
    pattern = r"[^\n]*".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, printed) is not None


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(("title", "code", "expected"), EXAMPLES)
def test_an_example_prints_what_the_page_says(
    namespace: dict[str, Any], capfd: pytest.CaptureFixture[str], title: str, code: str, expected: str
) -> None:
    if "vm" not in namespace and not code.startswith("import"):
        pytest.skip("an example before this one failed")
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), namespace)
    printed = capfd.readouterr().out
    assert matches(expected, printed), printed
