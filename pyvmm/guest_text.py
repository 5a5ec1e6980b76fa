"""The filter for text from a guest: printable characters, newline and tab stay, the rest is escaped for a terminal.

    \\x1b]0;title\\x07    ESC, other C0 and C1 controls, DEL    a terminal obeys them: title, clipboard
    \\u202e              bidi overrides, zero-width characters    text that reads otherwise than it is
    \\xff                bytes that are no UTF-8

All text that a guest can choose passes this filter before it is shown anywhere but on the interactive console: panic
texts, `pyvmm log` on a terminal, trace events, device names, error texts from a monitor. Programs (JSON, the Python
API, `pyvmm log` into a pipe, `--console FILE`) get it unfiltered, as SECURITY.md documents.
"""

from __future__ import annotations

from typing import Any

_KEPT = "\n\t"


def clean(text: str | bytes) -> str:
    """Filter `text` for a terminal; lines are kept. CR LF and a lone CR become a newline, so that a CR cannot
    overwrite the text before it.
    """
    text = _decode(text)
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(letter if letter.isprintable() or letter in _KEPT else _escape(letter) for letter in text)


def one_line(text: str | bytes) -> str:
    """Filter text for a line or a table's cell: newlines and tabs are escaped, too."""
    text = _decode(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def clean_all(value: Any) -> Any:
    """Filter each string in a monitor's reply or event, names of members included."""
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean_all(key): clean_all(each) for key, each in value.items()}
        case list() | tuple():
            return [clean_all(each) for each in value]
        case _:
            return value


class Cleaner:
    """Filters text that comes in pieces as `clean` does: a CR at a piece's end is held until the next piece."""

    def __init__(self) -> None:
        self._carriage_return = False

    def feed(self, piece: str) -> str:
        """Return the text that can be shown so far."""
        if self._carriage_return:
            piece = "\r" + piece
        self._carriage_return = piece.endswith("\r")
        return clean(piece[:-1] if self._carriage_return else piece)

    def end(self) -> str:
        """Return the text that was held back."""
        waiting, self._carriage_return = self._carriage_return, False
        return "\n" if waiting else ""


def _decode(text: str | bytes) -> str:
    return text if isinstance(text, str) else bytes(text).decode("utf-8", "backslashreplace")


def _escape(letter: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter) or letter.encode("unicode_escape").decode("ascii")
