"""One QMP conversation as a state machine: bytes in, replies out, no socket.

Source: QEMU docs/interop/qmp-spec.rst; error texts as in its monitor/qmp.c, qapi/qmp-dispatch.c and qapi visitors.

    client                                server
      |  <------------- greeting ----------  |   Negotiating
      |  -- {"execute": "qmp_capabilities"}  |
      |  <------------ {"return": {}} -----  |   Commanding: commands, and events from here on
      |  -- {"execute": "stop", "id": 7} ->  |
      |  <-- {"event": "STOP", ...} -------  |
      |  <-- {"return": {}, "id": 7} ------  |

The input is a stream of JSON objects; lines mean nothing, save that a newline is where reading starts again after
something malformed. The client may be anybody's program, so everything it can make grow has a limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from pyvmm import __version__
from pyvmm.control.errors import CommandNotFound, ControlError

MESSAGE_LIMIT = 64 << 10
"""Bytes of one request. The longest that makes sense is a few hundred; one this long takes a millisecond to parse."""

NESTING_LIMIT = 64
"""Objects and arrays within each other. Arguments of QMP commands nest four deep; Python's parser recurses."""

MALFORMED_LIMIT = 32
"""Malformed messages in a row, after which the peer is taken for something that does not speak QMP."""

QEMU_VERSION = (10, 0, 0)
"""The QEMU whose names, arguments and errors are spoken here: clients ask for a version to know what they may use."""

VERSION: dict[str, Any] = {
    "qemu": dict(zip(("major", "minor", "micro"), QEMU_VERSION, strict=True)),
    "package": f" (pyvmm {__version__})",
}

Dispatch = Callable[[str, dict[str, Any]], Any]
"""Runs a command by name with its arguments and returns the reply, or a Later; raises ControlError."""

_BRACKET_OR_QUOTE = re.compile(rb"[\"'{}\[\]]")
_END_OF_STRING = {
    b'"': re.compile(rb'["\\\x00-\x1f]'),
    b"'": re.compile(rb"['\\\x00-\x1f]"),  # QEMU takes strings in single quotes too
}
_STRING = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*\'""", re.DOTALL)
_ESCAPE_OR_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_RESTART = re.compile(rb"[\n\xff]")
_BLANK = b" \t\r\n\xff"  # 0xff: a client may send it to reset the parser, QEMU's guest agent protocol does


class Later:
    """A reply that is not there yet. `resolve` or `refuse` once; `then(tell)` is called with what it came to."""

    def __init__(self) -> None:
        self._result: tuple[Any, ControlError | None] | None = None
        self._tell: Callable[[Any, ControlError | None], None] | None = None

    def resolve(self, reply: Any) -> None:
        self._settle(reply, None)

    def refuse(self, error: ControlError) -> None:
        self._settle(None, error)

    def then(self, tell: Callable[[Any, ControlError | None], None]) -> None:
        """Call `tell(reply, error)`, at once if it is known already."""
        self._tell = tell
        if self._result is not None:
            tell(*self._result)

    def _settle(self, reply: Any, error: ControlError | None) -> None:
        assert self._result is None
        self._result = reply, error
        if self._tell is not None:
            self._tell(reply, error)


@dataclass(frozen=True, slots=True)
class Malformed:
    """Input that is no JSON object, up to the next newline."""

    reason: str


class Splitter:
    """Cuts a byte stream into JSON texts by counting brackets. Linear in what it is fed, whatever that is."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._scanned = 0
        self._depth = 0
        self._quote = b""  # of the string that it is in
        self._skipping = False

    def feed(self, data: bytes) -> None:
        self._data += data

    def take(self) -> bytes | Malformed | None:
        """The next whole text, what was wrong instead of one, or None until more is fed."""
        if self._skipping and not self._skip():
            return None
        if not self._depth:
            self._data = self._data.lstrip(_BLANK)
            if not self._data:
                return None
            if self._data[0] not in b"{[":
                return self._malformed("expecting an object")
        while match := self._next_mark():
            mark, at = match[0], match.end()
            self._scanned = at
            if self._quote:
                if mark == self._quote:
                    self._quote = b""
                elif mark == b"\\":
                    self._scanned = at + 1  # whatever follows is part of the string
                else:
                    self._scanned = at - 1
                    return self._malformed("control character in a string")
            elif mark in (b'"', b"'"):
                self._quote = mark
            elif mark in b"{[":
                self._depth += 1
                if self._depth > NESTING_LIMIT:
                    return self._malformed(f"nested more than {NESTING_LIMIT} deep")
            else:
                self._depth -= 1
                if not self._depth:
                    return self._cut(at)
            if at > MESSAGE_LIMIT:
                break
        if len(self._data) > MESSAGE_LIMIT:
            return self._malformed(f"longer than {MESSAGE_LIMIT} bytes")
        return None

    def _next_mark(self) -> re.Match[bytes] | None:
        pattern = _END_OF_STRING[self._quote] if self._quote else _BRACKET_OR_QUOTE
        match = pattern.search(self._data, self._scanned)
        if match is None:
            self._scanned = max(self._scanned, len(self._data))
        return match

    def _cut(self, end: int) -> bytes:
        text = bytes(self._data[:end])
        del self._data[:end]
        self._scanned = 0
        return text

    def _malformed(self, reason: str) -> Malformed:
        """Forget the broken text; what follows counts again from the next newline that was not looked at yet."""
        del self._data[: self._scanned]
        self._scanned, self._depth, self._quote, self._skipping = 0, 0, b"", True
        self._skip()
        return Malformed(reason)

    def _skip(self) -> bool:
        match = _RESTART.search(self._data)
        if match is None:
            self._data.clear()
            return False
        del self._data[: match.end()]
        self._skipping = False
        return True


class Session:
    """Negotiating --qmp_capabilities--> Commanding. One client; `dispatch` runs the commands."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._input = Splitter()
        self._malformed = 0
        self.commanding = False
        self.waiting = False  # a command's reply is still to come; the next one waits for it
        self.hopeless = False  # the peer does not speak JSON: drop it

    def greeting(self) -> bytes:
        """What a client hears first. It offers no capabilities: no command is so slow as to need out-of-band ones."""
        return encode({"QMP": {"version": VERSION, "capabilities": []}})

    def feed(self, data: bytes) -> None:
        """Take input; `step` until it returns None answers it."""
        self._input.feed(data)

    def step(self, answered: Callable[[bytes], None]) -> bool:
        """Take one message of the input; False when there is no whole one, or the reply to the last is still out.

        `answered` is called with the reply, within this call or, for a command that takes its time, later.
        """
        if self.waiting:
            return False
        match self._input.take():
            case None:
                return False
            case Malformed(reason):
                self._malformed += 1
                self.hopeless = self._malformed >= MALFORMED_LIMIT
                answered(encode(_error(ControlError(f"JSON parse error, {reason}"))))
            case bytes(text):
                self._answer(text, lambda message: answered(encode(message)))
        return True

    def _answer(self, text: bytes, answered: Callable[[dict[str, Any]], None]) -> None:
        try:
            request = decode(text)
        except ValueError as error:
            self._malformed += 1
            self.hopeless = self._malformed >= MALFORMED_LIMIT
            answered(_error(ControlError(f"JSON parse error, {error}")))
            return
        self._malformed = 0
        tag = {"id": request["id"]} if isinstance(request, dict) and "id" in request else {}
        try:
            name, arguments = check_request(request)
            reply = self._execute(name, arguments)
        except ControlError as error:
            answered(_error(error) | tag)
            return
        if not isinstance(reply, Later):
            answered({"return": reply} | tag)
            return

        def settled(reply: Any, error: ControlError | None) -> None:
            self.waiting = False
            answered(({"return": reply} if error is None else _error(error)) | tag)

        self.waiting = True
        reply.then(settled)

    def _execute(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "qmp_capabilities":
            if self.commanding:
                raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
            _check_capabilities(arguments)
            self.commanding = True
            return {}
        if not self.commanding:
            raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
        return self._dispatch(name, arguments)


def check_request(request: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a request. Raises ControlError with QEMU's words."""
    if not isinstance(request, dict):
        raise ControlError("QMP input must be a JSON object")
    for key, value in request.items():
        if key == "execute":
            if not isinstance(value, str):
                raise ControlError("QMP input member 'execute' must be a string")
        elif key == "arguments":
            if not isinstance(value, dict):
                raise ControlError("QMP input member 'arguments' must be an object")
        elif key != "id":
            raise ControlError(f"QMP input member '{key}' is unexpected")
    if "execute" not in request:
        raise ControlError("QMP input lacks member 'execute'")
    return request["execute"], request.get("arguments", {})


def _check_capabilities(arguments: dict[str, Any]) -> None:
    """`enable` lists capabilities the client wants; none was offered."""
    for key, value in arguments.items():
        if key != "enable":
            raise ControlError(f"Parameter '{key}' is unexpected")
        if not isinstance(value, list):
            raise ControlError("Invalid parameter type for 'enable', expected: array")
        for index, capability in enumerate(value):
            if capability == "oob":
                raise ControlError("Capability oob not available")
            raise ControlError(f"Parameter 'enable[{index}]' does not accept value '{capability}'")


def _error(error: ControlError) -> dict[str, Any]:
    return {"error": {"class": error.qmp_class, "desc": str(error)}}


def encode(message: dict[str, Any]) -> bytes:
    """One message as QMP sends it: a line of ASCII."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"


def encode_event(name: str, data: dict[str, Any], time: float) -> bytes:
    """An event as every client gets it, at wall clock `time`; QEMU leaves `data` out where there is none."""
    message: dict[str, Any] = {"event": name}
    if data:
        message["data"] = data
    microseconds = int(time * 1_000_000)
    message["timestamp"] = {"seconds": microseconds // 1_000_000, "microseconds": microseconds % 1_000_000}
    return encode(message)


def decode(text: bytes) -> Any:
    """JSON and QEMU's single quotes, strictly: no NaN, nothing infinite, no key twice. Raises ValueError, shortly."""
    try:
        return json.loads(
            _plain_quotes(text.decode("utf-8")),
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=_no_duplicates,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at {error.pos}") from error
    except UnicodeDecodeError as error:
        raise ValueError("invalid UTF-8 sequence in string") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _plain_quotes(text: str) -> str:
    """JSON for QEMU's extension of it: strings in single quotes, and `\\'` in either kind."""
    return _STRING.sub(_plain_string, text) if "'" in text else text


def _plain_string(match: re.Match[str]) -> str:
    def plain(part: re.Match[str]) -> str:
        return {"\\'": "'", '"': '\\"'}.get(part[0], part[0])

    return '"' + _ESCAPE_OR_QUOTE.sub(plain, match[0][1:-1]) + '"'


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"invalid keyword '{word}'")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return number


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made
