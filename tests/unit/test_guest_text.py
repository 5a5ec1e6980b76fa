"""What of a guest's text a terminal gets to see."""

from __future__ import annotations

import pytest

from pyvmm.guest_text import Cleaner, clean, clean_all, one_line

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\x00\u202e\u200b\u2028 é 漢 ok"


def is_safe(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


FORMATTING = (0xAD, 0x61C, 0x200B, 0x200E, 0x202E, 0x2066, 0xFEFF)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *FORMATTING])
def test_what_a_terminal_would_obey_is_escaped(code: int) -> None:
    assert is_safe(clean(f"a{chr(code)}b"))
    assert one_line(f"a{chr(code)}b").isprintable()


def test_text_stays_as_it_is() -> None:
    assert clean("plain é 漢 😀\n\tindented") == "plain é 漢 😀\n\tindented"
    assert one_line("plain é 漢 😀") == "plain é 漢 😀"


def test_escapes_show_the_original_bytes() -> None:
    assert clean("\x1b[2J") == "\\x1b[2J"
    assert clean("\u202e") == "\\u202e"
    assert one_line("a\r\n\tb") == "a\\r\\n\\tb"


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert clean(b"\xff\xc3\xa9\xc3") == "\\xffé\\xc3"
    assert clean("\ud800") == "\\ud800"


def test_a_carriage_return_ends_a_line_and_overwrites_none() -> None:
    assert clean("Kernel panic\rall is well\r\n") == "Kernel panic\nall is well\n"


def test_pieces_are_cleaned_as_the_whole_is() -> None:
    whole = "one\r\ntwo\rthree\x1b[m\r"
    for at in range(len(whole)):
        cleaner = Cleaner()
        assert cleaner.feed(whole[:at]) + cleaner.feed(whole[at:]) + cleaner.end() == clean(whole)


def test_every_string_of_a_reply_is_cleaned() -> None:
    found = clean_all({"a\x1b": [{"b": HOSTILE}, 1, None], "c": True})
    assert found == {"a\\x1b": [{"b": clean(HOSTILE)}, 1, None], "c": True}
