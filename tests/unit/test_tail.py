from __future__ import annotations

from pyvmm.tail import Tail


def test_the_last_bytes_are_kept() -> None:
    tail = Tail(10)
    for number in range(100):
        tail(b"%02d" % number)
    assert tail.since() == (190, b"9596979899")


def test_output_goes_on_where_one_was() -> None:
    tail = Tail(10)
    tail(b"abc")
    assert tail.since(1) == (1, b"bc")
    tail(b"def")
    assert tail.since(3) == (3, b"def")
    assert tail.since(6) == (6, b"")
    assert tail.since(99) == (6, b"")


def test_one_write_may_be_longer_than_what_is_kept() -> None:
    tail = Tail(4)
    tail(b"0123456789")
    assert tail.since() == (6, b"6789")


def test_text_is_the_end_with_other_bytes_replaced() -> None:
    tail = Tail(4)
    for _ in range(5):
        tail(b"abc")
    assert tail.text() == "cabc"
    tail(b"\xff")
    assert tail.text() == "abc\ufffd"
