"""The list of chapters, docs/book/chapters.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
BOOK = ROOT / "docs/book"
EXAMPLES = BOOK / "examples"
SOLUTIONS = BOOK / "solutions"
PICTURES = BOOK / "pictures"


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter: its page, its title, and the packages and modules that it explains."""

    number: int
    page: str
    title: str
    code: tuple[str, ...]
    example: str

    @property
    def solutions(self) -> Path:
        """The file with the functions exercise_1, exercise_2 and exercise_3."""
        return SOLUTIONS / f"ch{self.number:02}.py"


def chapters() -> list[Chapter]:
    """All chapters, in reading order."""
    rows = tomllib.loads((BOOK / "chapters.toml").read_text())["chapter"]
    return [
        Chapter(number, row["page"], row["title"], tuple(row["code"]), row["example"])
        for number, row in enumerate(rows, 1)
    ]


def chapter_of(module: str, listed: list[Chapter]) -> int | None:
    """The number of the chapter that explains a module of ours: the one that names the longest part of its name."""
    found = [
        (len(name), chapter.number)
        for chapter in listed
        for name in chapter.code
        if module == name or module.startswith(name + ".")
    ]
    return max(found)[1] if found else None
