"""Input that QEMU 10.0.2 (Debian, -M pc, -qmp stdio) was given, and what it answered: recorded, not derived."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pyvmm.control.json_stream import MESSAGE_LIMIT, NESTING_LIMIT, Malformed, Reader
from pyvmm.control.protocol import QmpSession


def answers(data: bytes) -> list[Any]:
    session = QmpSession(lambda name, arguments: {})
    session.feed(b'{"execute":"qmp_capabilities"}' + data)
    made: list[bytes] = []
    while session.step(made.append):
        pass
    return [json.loads(reply) for reply in made[1:]]


def told(data: bytes) -> list[str]:
    """The error texts, `ok` for a reply."""
    return [each["error"]["desc"] if "error" in each else "ok" for each in answers(data)]


def error(text: str) -> str:
    return f"JSON parse error, {text}"


EXPECTING = error("expecting value")
OBJECT = "QMP input must be a JSON object"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'{"execute":"q","id":"\ud834"}', [error("\\ud834 is not a valid Unicode character")]),
        (rb'{"execute":"q","id":"\ud834x"}', [error("\\ud834 is not a valid Unicode character")]),
        (rb'{"execute":"q","id":"\udc00"}', [error("\\udc00 is not a valid Unicode character")]),
        (rb'{"execute":"q","id":"\ufffe"}', [error("\\ufffe is not a valid Unicode character")]),
        (b'{"execute":"q","id":"\xff"}', [error("stray '\"\ufffd'"), EXPECTING]),
        (b'{"execute":"q","id":"\xed\xa0\x80"}', [error("invalid UTF-8 sequence in string")]),
        (b'{"execute":"q","id":"\xef\xbf\xbf"}', [error("invalid UTF-8 sequence in string")]),
        (b'{"execute":"q","id":"\xc0\x80"}', ["ok"]),
        (b'{"execute":"q","id":"a\x01b"}', [error("stray '\"a\x01'"), EXPECTING]),
        (b'{"execute":"q","id":"a\tb"}', [error("stray '\"a\t'"), EXPECTING]),
        (rb'{"execute":"q","id":"a\qb"}', [error("invalid escape sequence in string")]),
        (b'{"execute":"q","id":"%d %s %p %"}', ["ok"]),
        (b'{"execute":"q","id":1,"id":2}', [error("duplicate key")]),
        (b'{"execute":"q","id":{"a":1,"a":2}}', [error("duplicate key")]),
        (b'{"execute":"q","id":01}', [error("stray '01'"), EXPECTING]),
        (b'{"execute":"q","id":+1}', [error("stray '+'"), EXPECTING]),
        (b'{"execute":"q","id":.5}', [error("stray '.'"), EXPECTING]),
        (b'{"execute":"q","id":1.}', [error("stray '1.}'")]),
        (b'{"execute":"q","id":-}', [error("stray '-}'")]),
        (b'{"execute":"q","id":1e}', [error("stray '1e}'")]),
        (b'{"execute":"q","id":0e5}', [error("expected separator in dict")]),
        (b'{"execute":"q","id":1.5e+3x}', [error("expected separator in dict")]),
        (b'{"execute":"q","id":-0}', ["ok"]),
        (b'{"execute":"q","id":nul}', [error("invalid keyword 'nul'")]),
        (b'{"execute":"q","id":NaN}', [error("stray 'N'"), EXPECTING]),
        (b'{"execute":"q","id":True}', [error("stray 'T'"), EXPECTING]),
        (b'{"execute":"q",}', [EXPECTING]),
        (b'{"execute":"q" "id":1}', [error("expected separator in dict")]),
        (b'{"execute" "q"}', [error("missing : in object pair")]),
        (b'{"execute":}', [EXPECTING]),
        (b"{1:2}", [error("key is not a string in object")]),
        (b'{"execute":"q","id":[1,]}', [EXPECTING]),
        (b'{"execute":"q","id":[1 2]}', [error("expected separator in list")]),
        (b'{"execute":"q","id":%d}', [error("stray '%'"), EXPECTING]),
        (b"[1]", [OBJECT]),
        (b"1", [OBJECT]),
        (b'"x"', [OBJECT]),
        (b"true", [OBJECT]),
        (b"{]", [EXPECTING]),
        (b"[}", [EXPECTING]),
        (b'{"a"]', [error("missing : in object pair")]),
        (b'{"a":1]', [error("expected separator in dict")]),
        (b"}", [EXPECTING]),
        (b"]", [EXPECTING]),
        (b"xyz", [error("invalid keyword 'xyz'")]),
        (b"@", [error("stray '@'")]),
        (b"\n", []),
        (b'\xff{"execute":"q"}', [error("stray '\ufffd'"), "ok"]),
        (b'\x1b{"execute":"q"}', [error("stray '\x1b'"), "ok"]),
        (b"\x00", [error("stray ''")]),
        (b'{"execute":"q"\x00}', [error("stray ''"), EXPECTING]),
        (b': {"execute":"q"}', [EXPECTING, "ok"]),
        (b'{"execute":"q"} x {"execute":"q"}', ["ok", error("invalid keyword 'x'"), "ok"]),
        (b'{"execute":"q","id":"abc', [error("stray '\"abc\n'")]),
        (b'{"execute":"q","arguments":null}', ["QMP input member 'arguments' must be an object"]),
        (b'{"exec-oob":"q"}', ["QMP input member 'exec-oob' is unexpected"]),
    ],
)
def test_input_is_answered_as_by_qemu(text: bytes, expected: list[str]) -> None:
    assert told(text + b"\n") == expected
    assert told(text + b"\n" + b'{"execute":"q"}') == [*expected, "ok"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (b"18446744073709551615", (1 << 64) - 1),
        (b"18446744073709551616", 18446744073709551616.0),
        (b"-9223372036854775809", -9223372036854775808.0),
        (b"123456789012345678901234567890", 1.2345678901234568e29),
        (b"1e3", 1000),
        (rb'"\ud834\udd1e"', "\U0001d11e"),
        (b'"\xc3\xa4 \x7f / \\/ \\u0000"', "\xe4 \x7f / / \0"),
        (b"'a\\'b\"c'", "a'b\"c"),
        (b'"a\\\'b"', "a'b"),
        (b"null", None),
        (b'{"a": [1, null]}', {"a": [1, None]}),
    ],
)
def test_an_id_comes_back_as_from_qemu(text: bytes, meant: Any) -> None:
    [reply] = answers(b'{"execute":"q","id":' + text + b"}")
    assert reply == {"return": {}, "id": meant}


def test_input_in_single_bytes_is_answered_as_in_one_piece() -> None:
    text = b"""{"execute":"q","id":[-12.5e3, "a\\u00e4\\"", 'x', true, {"k": 0}]} 1 @ [1,"""
    whole, piecemeal = Reader(), Reader()
    whole.feed(text + b"\n}")
    expected, found = [], []
    while (each := whole.next_value()) is not None:
        expected.append(each)
    for byte in text + b"\n}":
        piecemeal.feed(bytes([byte]))
        while (each := piecemeal.next_value()) is not None:
            found.append(each)
    assert found == expected and len(found) == 4


@pytest.mark.parametrize("number", [b"1" * 60_000, b"1e" + b"9" * 400, b"-1" + b"0" * 5000])
def test_a_number_that_no_double_holds_is_refused(number: bytes) -> None:
    assert told(b'{"execute":"q","id":' + number + b"}") == [error("number out of range")]


def test_depth_and_length_have_a_limit_and_one_error() -> None:
    deep = b"[" * (NESTING_LIMIT + 1) + b"]" * (NESTING_LIMIT + 1)
    assert told(deep + b'\n{"execute":"q"}') == ["JSON nesting depth limit exceeded", "ok"]
    long = b'{"execute":"' + b"x" * MESSAGE_LIMIT + b'"}'
    assert told(long + b'\n{"execute":"q"}') == ["JSON token size limit exceeded", "ok"]


@pytest.mark.parametrize("piece", [b"[", b"{", b'"', b"0", b"a", b"\\", b'"\\', b" ", b"@", b"[]", b"1 ", b"\xff"])
def test_work_is_linear_in_the_input(piece: bytes) -> None:
    """A quadratic reader would take minutes."""
    reader = Reader()
    began = time.monotonic()
    for _ in range(16):
        reader.feed((piece * (1 << 14))[: 1 << 14])
        while isinstance(reader.next_value(), Malformed):
            pass
        while reader.next_value() is not None:
            pass
        assert reader.held <= MESSAGE_LIMIT + (1 << 14)
    assert time.monotonic() - began < 10
