"""Parser of the kernel command line by Linux's rules: words, quotes, and the `--` after which all words are init's.

Source: Linux lib/cmdline.c, next_arg(); kernel/params.c, parse_args(); init/main.c.

    quiet dyndbg="file a.c +p; file b.c +p" console=ttyS0 -- single
    |----------------- for the kernel -----------------|     |-- for init

White space separates words except between double quotes. A word whose first character is a quote loses it, and its
last one, so that `"--"` separates as `--` does; quotes elsewhere in a word only keep its white space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SPACES = frozenset(" \t\n\v\f\r")


class Word(NamedTuple):
    """One word: its begin and end in the text, and whether its last quote is open at the text's end."""

    start: int
    end: int
    text: str
    unclosed: bool

    @property
    def name(self) -> str:
        """Return the part before the `=`; the whole word without one."""
        text = self.text
        if text.startswith('"'):
            text = text[1:].removesuffix('"')
        return text.partition("=")[0]

    @property
    def separates(self) -> bool:
        """Return whether this is the `--` between the kernel's words and init's."""
        return self.name == "--" and "=" not in self.text


def words(text: str) -> Iterator[Word]:
    """Return the words of `text`, in order."""
    start, quoted = -1, False
    for at, letter in enumerate(text):
        if letter in SPACES and not quoted:
            if start >= 0:
                yield Word(start, at, text[start:at], False)
            start = -1
            continue
        if start < 0:
            start = at
        if letter == '"':
            quoted = not quoted
    if start >= 0:
        yield Word(start, len(text), text[start:], quoted)


def split(text: str) -> tuple[str, str]:
    """Split `text` before its `--`. An open quote is closed at the end of the kernel's part: the kernel reads the
    same value, and words appended later do not become part of it.
    """
    for word in words(text):
        if word.separates:
            return text[: word.start].strip(), text[word.start :].strip()
        if word.unclosed:
            return text.strip() + '"', ""
    return text.strip(), ""


def names(text: str) -> list[str]:
    """Return the names of the kernel's own parameters in `text`, in order."""
    found = []
    for word in words(text):
        if word.separates:
            break
        found.append(word.name)
    return found
