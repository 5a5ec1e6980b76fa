"""QMP's input: a stream of JSON values, split and parsed as QEMU does it, errors and recovery included.

Source: QEMU qobject/json-lexer.c (tokens, IN_RECOVERY), json-streamer.c (where a value ends), json-parser.c (texts of
errors). tests/unit/control/test_qmp_json.py holds what QEMU 10.0.2 answered to each input there.

    bytes --Lexer--> tokens --Reader--> a value once its brackets are closed, or Malformed

A value that stands alone (`1`, `"x"`) counts as soon as its token ends. Text that is no token discards the
partial value, and reading starts again at the next bracket, colon, comma, control character, 0xFE or 0xFF. All work
is linear in the input; a value is limited to MESSAGE_LIMIT bytes and NESTING_LIMIT levels, and the input after one
beyond that is skipped up to a newline (QEMU: up to the next bracket, with an error for each).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

MESSAGE_LIMIT = 64 << 10
"""Largest value in bytes. The longest valid request is x-execute's, 32 KiB of command (QEMU: 64 MiB)."""

NESTING_LIMIT = 64
"""Deepest nesting of objects and arrays (QEMU: 1024). QMP's arguments nest four deep, and parsing recurses."""

SHOWN = 60
"""Bytes of the input that an error text quotes."""


class Token(NamedTuple):
    """A JSON token. `kind` is the byte it begins with for brackets, colon, comma and quotes, else `0` or `a`."""

    kind: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Value:
    """A complete value of the input."""

    value: Any


@dataclass(frozen=True, slots=True)
class Malformed:
    """Input that is no JSON value, with QEMU's error text."""

    reason: str


class JsonError(ValueError):
    """A value is malformed; the text is QEMU's."""


_BLANK = re.compile(rb"[ \t\r\n]*")
_END_OF = {
    '"': re.compile(rb'["\\\x00-\x1f\xfe\xff]'),
    "'": re.compile(rb"['\\\x00-\x1f\xfe\xff]"),  # QEMU takes strings in single quotes too
    "0": re.compile(rb"[^0-9a-zA-Z.+-]"),
    "a": re.compile(rb"[^a-z]"),
}
"""Pattern of the first byte that may end a token, by the token's kind."""

_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:(?<!^0)(?<!^-0)[eE][+-]?[0-9]+)?")
_NUMBER_PREFIX = re.compile(rb"-?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?")
_RESYNC = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff\[\]{}:,]")
_NEWLINE = re.compile(rb"[\n\xff]")
_KINDS = {ord(c): c for c in "{}[]:,\"'"} | dict.fromkeys(b"-0123456789", "0") | dict.fromkeys(range(97, 123), "a")


class Reader:
    """Splits a byte stream into JSON values: `feed`, then `next_value` until it returns None."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # all input before it has been tokenised
        self._start: int | None = None  # of an incomplete token of `_kind`; its scan resumes at `_at`
        self._kind = ""
        self._tokens: list[Token] = []
        self._used = 0  # bytes of the value being read, blanks included
        self._braces = self._brackets = 0
        self._skip: re.Pattern[bytes] | None = None

    @property
    def held(self) -> int:
        """Return the number of input bytes that are buffered."""
        return len(self._data) + self._used

    def feed(self, data: bytes) -> None:
        self._data += data

    def next_value(self) -> Value | Malformed | None:
        """Return the next value, Malformed in place of one, or None until more is fed."""
        while True:
            if self._skip is not None and not self._skipped(self._skip):
                return None
            try:
                token = self._token()
            except JsonError as error:
                return Malformed(str(error))
            if token is None:
                self._forget()
                if self._used + len(self._data) > MESSAGE_LIMIT:
                    return self._beyond("JSON token size limit exceeded")
                return None
            found = self._add(token)
            if found is not None:
                return found

    def _add(self, token: Token) -> Value | Malformed | None:
        match token.kind:
            case "{":
                self._braces += 1
            case "}":
                self._braces -= 1
            case "[":
                self._brackets += 1
            case "]":
                self._brackets -= 1
        if self._used + self._at > MESSAGE_LIMIT:
            return self._beyond("JSON token size limit exceeded")
        if self._braces + self._brackets > NESTING_LIMIT:
            return self._beyond("JSON nesting depth limit exceeded")
        self._tokens.append(token)
        if self._braces >= 0 and self._brackets >= 0 and (self._braces or self._brackets):
            return None
        tokens = self._tokens
        self._reset()
        try:
            return Value(_Parser(tokens).value())
        except JsonError as error:
            return Malformed(f"JSON parse error, {error}")

    def _reset(self) -> None:
        """Start a new value."""
        self._tokens = []
        self._braces = self._brackets = self._used = 0
        del self._data[: self._at]
        self._at = 0

    def _forget(self) -> None:
        """Drop the bytes already tokenised."""
        keep = self._at if self._start is None else self._start
        self._used += keep
        del self._data[:keep]
        self._at -= keep
        if self._start is not None:
            self._start = 0

    def _beyond(self, reason: str) -> Malformed:
        """Report a limit that was exceeded, and skip input up to the next newline."""
        self._start = None
        self._reset()
        self._skip = _NEWLINE
        return Malformed(reason)

    def _skipped(self, until: re.Pattern[bytes]) -> bool:
        match = until.search(self._data, self._at)
        if match is None:
            self._data.clear()
            self._at = 0
            return False
        del self._data[: match.end() if until is _NEWLINE else match.start()]
        self._at, self._skip = 0, None
        return True

    def _token(self) -> Token | None:
        """Return the next token, None until more is fed. Raises JsonError for text that is no token."""
        data = self._data
        if self._start is None:
            blank = _BLANK.match(data, self._at)
            assert blank is not None
            if blank.end() > self._at and not self._tokens:
                del data[: blank.end()]  # between values: counts towards neither
                self._at = 0
            else:
                self._at = blank.end()
            if self._at == len(data):
                return None
            kind = _KINDS.get(data[self._at])
            if kind is None:
                self._stray(self._at, self._at + 1)
            if kind in "{}[]:,":
                self._at += 1
                return Token(kind, b"")
            self._start, self._kind = self._at, kind
            self._at += 1
        return self._whole(self._start, self._kind)

    def _whole(self, start: int, kind: str) -> Token | None:
        """Return the multi-byte token that begins at `start`, if its end has arrived."""
        data = self._data
        pattern = _END_OF[kind]
        while (end := pattern.search(data, self._at)) is not None:
            if kind not in "\"'":
                return self._word(start, end.start(), kind)
            mark = end[0]
            if mark == b"\\":
                if end.end() == len(data):
                    self._at = end.start()
                    return None
                if data[end.end()] < 0x20 or data[end.end()] >= 0xFE:
                    self._stray(start, end.end() + 1)
                self._at = end.end() + 1
            elif mark == kind.encode():
                self._at, self._start = end.end(), None
                return Token(kind, bytes(data[start + 1 : end.start()]))
            else:
                self._stray(start, end.end())
        self._at = len(data)
        return None

    def _word(self, start: int, end: int, kind: str) -> Token:
        """Return the number or keyword in `start:end`; bytes after the number begin the next token."""
        text = bytes(self._data[start:end])
        if kind == "0":
            match = _NUMBER.match(text)
            prefix = _NUMBER_PREFIX.match(text)
            assert prefix is not None
            whole = match is not None and match.end() == prefix.end()
            leading_zero = match is not None and match[0].lstrip(b"-") == b"0"
            if leading_zero and text[match.end() : match.end() + 1].isdigit():  # type: ignore[union-attr]
                self._stray(start, start + match.end() + 1)  # type: ignore[union-attr]
            if leading_zero and text[match.end() : match.end() + 1] in (b"e", b"E"):  # type: ignore[union-attr]
                whole = True  # QEMU's lexer accepts no exponent after a lone zero
            if not whole or match is None:
                self._stray(start, start + prefix.end() + 1)
            text = match[0]
        self._at, self._start = start + len(text), None
        return Token(kind, text)

    def _stray(self, start: int, end: int) -> NoReturn:
        """Raise JsonError for `start:end`, whose last byte is the first that no token allows."""
        text = bytes(self._data[start : min(end, start + SHOWN)]).partition(b"\0")[0]
        self._start, self._at = None, end
        self._reset()
        self._skip = _RESYNC
        raise JsonError(f"JSON parse error, stray '{text.decode('utf-8', 'replace')}'")


class _Parser:
    """Recursive descent parser from tokens to a value; NESTING_LIMIT bounds the recursion."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = iter([*tokens, Token("", b"")])
        self._next = next(self._tokens)

    def _pop(self) -> Token:
        token = self._next
        if not token.kind:
            raise JsonError("premature EOI")
        self._next = next(self._tokens)
        return token

    def value(self) -> Any:
        token = self._pop()
        match token.kind:
            case "{":
                return self._object()
            case "[":
                return self._array()
            case '"' | "'":
                return _string(token.text)
            case "0":
                return _number(token.text)
            case "a":
                return _keyword(token.text)
        raise JsonError("expecting value")

    def _object(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if self._next.kind == "}":
            self._pop()
            return made
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise JsonError("key is not a string in object")
            if self._pop().kind != ":":
                raise JsonError("missing : in object pair")
            value = self.value()
            if key in made:
                raise JsonError("duplicate key")
            made[key] = value
            match self._pop().kind:
                case "}":
                    return made
                case ",":
                    pass
                case _:
                    raise JsonError("expected separator in dict")

    def _array(self) -> list[Any]:
        made: list[Any] = []
        if self._next.kind == "]":
            self._pop()
            return made
        while True:
            made.append(self.value())
            match self._pop().kind:
                case "]":
                    return made
                case ",":
                    pass
                case _:
                    raise JsonError("expected separator in list")


_ESCAPE = re.compile(
    rb"\\(?:u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|u(?P<code>[0-9a-fA-F]{4})|(?P<other>.))",
    re.DOTALL,
)
_PLAIN = {b'"': '"', b"'": "'", b"\\": "\\", b"/": "/", b"b": "\b", b"f": "\f", b"n": "\n", b"r": "\r", b"t": "\t"}


def _string(text: bytes) -> str:
    pieces: list[str] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        pieces.append(_utf8(text[at : match.start()]))
        at = match.end()
        other = match["other"]
        if other is not None:
            if other == b"u":
                bad = text[match.start() : match.start() + 6].decode("utf-8", "replace")
                raise JsonError(f"{bad} is not a valid Unicode character")
            if other not in _PLAIN:
                raise JsonError("invalid escape sequence in string")
            pieces.append(_PLAIN[other])
            continue
        if match["high"] is not None:
            code = 0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF)
        else:
            code = int(match["code"], 16)
        if not _is_character(code):
            raise JsonError(f"\\u{code:04x} is not a valid Unicode character")
        pieces.append(chr(code))
    pieces.append(_utf8(text[at:]))
    return "".join(pieces)


def _utf8(text: bytes) -> str:
    try:
        found = text.replace(b"\xc0\x80", b"\0").decode("utf-8")
    except UnicodeDecodeError:
        found = "\ufffe"
    if not found.isascii() and not all(map(_is_character, map(ord, found))):
        raise JsonError("invalid UTF-8 sequence in string")
    return found


def _is_character(code: int) -> bool:
    """Return whether `code` is a character: no surrogate, and none of Unicode's noncharacters."""
    return not (0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code & 0xFFFE == 0xFFFE)


def _number(text: bytes) -> int | float:
    """Convert to an integer of 64 bits, signed or not, else to a float, as QEMU does."""
    if text.lstrip(b"-").isdigit() and len(text) < 25:
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise JsonError("number out of range")  # QEMU answers `inf`, which is no JSON
    return number


def _keyword(text: bytes) -> bool | None:
    match text:
        case b"true":
            return True
        case b"false":
            return False
        case b"null":
            return None
    raise JsonError(f"invalid keyword '{text[:SHOWN].decode()}'")
