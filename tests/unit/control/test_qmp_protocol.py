from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pyvmm.control.errors import CommandNotFound, ControlError
from pyvmm.control.json_stream import MESSAGE_LIMIT, NESTING_LIMIT, Malformed, Reader, Value
from pyvmm.control.protocol import MALFORMED_LIMIT, DeferredReply, QmpSession, encode_event


def echo(name: str, arguments: dict[str, Any]) -> Any:
    if name == "fail":
        raise ControlError("no")
    if name != "echo":
        raise CommandNotFound(f"The command {name} has not been found")
    return arguments


def answers(session: QmpSession, data: bytes) -> list[Any]:
    session.feed(data)
    made: list[bytes] = []
    while session.step(made.append):
        pass
    return [json.loads(reply) for reply in made]


def commanding() -> QmpSession:
    session = QmpSession(echo)
    assert answers(session, b'{"execute": "qmp_capabilities"}') == [{"return": {}}]
    return session


def error_of(session: QmpSession, data: bytes) -> tuple[str, str]:
    [reply] = answers(session, data)
    return reply["error"]["class"], reply["error"]["desc"]


def test_greeting_names_a_version_and_no_capabilities() -> None:
    greeting = json.loads(QmpSession(echo).greeting())
    assert greeting["QMP"]["capabilities"] == []
    assert set(greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}


def test_commands_before_negotiation_are_refused_as_by_qemu() -> None:
    assert error_of(QmpSession(echo), b'{"execute": "echo"}') == (
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    )


def test_negotiating_twice_is_refused() -> None:
    assert error_of(commanding(), b'{"execute": "qmp_capabilities"}')[0] == "CommandNotFound"


def test_asking_for_out_of_band_is_refused_and_negotiation_goes_on() -> None:
    session = QmpSession(echo)
    request = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    assert error_of(session, request) == ("GenericError", "Capability oob not available")
    assert not session.commanding


@pytest.mark.parametrize("tag", [7, "x", None, [1, {"a": 2}], "\U0001d11e", 1.5, -0.0, (1 << 64) - 1, -(1 << 63)])
def test_the_id_comes_back_with_reply_and_error(tag: Any) -> None:
    session = commanding()
    for name in ("echo", "fail", "unknown"):
        [reply] = answers(session, json.dumps({"execute": name, "id": tag}).encode())
        assert reply["id"] == tag


def test_messages_may_share_a_line_and_span_lines() -> None:
    found = answers(commanding(), b'{"execute": "echo"}{"execute":\r\n "echo",\n"arguments": {"a": "}{\\""}}')
    assert found == [{"return": {}}, {"return": {"a": '}{"'}}]


def test_messages_may_come_byte_by_byte() -> None:
    session, found = commanding(), []
    for byte in b'{"execute": "echo", "arguments": {"a": "\\\\"}} {"execute": "fail"}':
        found += answers(session, bytes([byte]))
    assert [set(each) for each in found] == [{"return"}, {"error"}]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"[]", "QMP input must be a JSON object"),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"execute": 1}', "QMP input member 'execute' must be a string"),
        (b'{"execute": "echo", "arguments": []}', "QMP input member 'arguments' must be an object"),
        (b'{"execute": "echo", "argument": {}}', "QMP input member 'argument' is unexpected"),
    ],
)
def test_requests_of_the_wrong_form_are_refused_in_qemus_words(request_: bytes, text: str) -> None:
    assert error_of(commanding(), request_) == ("GenericError", text)


@pytest.mark.parametrize(
    "text",
    [
        b"hello\n",
        b"{]\n",
        b"{'execute': 'echo}\n",
        b'{"execute": NaN}\n',
        b'{"execute": "echo", "id": 1e999}\n',
        b'{"execute": "echo", "execute": "echo"}\n',
        b'{"execute": "\xff"}\n',
        b'{"execute": "\xc3"}\n',
        b'{"execute": "\\ud800"}\n',
        b'{"execute": "ec\nho"}\n',
        b'{"id": ' + b"9" * 5000 + b"}\n",
        b"{" * (NESTING_LIMIT + 1) + b"}" * (NESTING_LIMIT + 1) + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"execute": "' + b"x" * MESSAGE_LIMIT + b'"}\n',
        b"{" + b'""' * MESSAGE_LIMIT + b"}\n",
        b"\x00\x00\x00\n",
    ],
)
def test_malformed_input_gets_an_error_and_the_next_line_is_read_again(text: bytes) -> None:
    session = commanding()
    found = answers(session, text + b'{"execute": "echo", "id": 1}\n')
    assert found[0]["error"]["desc"].startswith("JSON ")
    assert found[-1] == {"return": {}, "id": 1}


def test_a_long_message_is_not_kept() -> None:
    reader = Reader()
    reader.feed(b'{"a": "')
    for _ in range(100):
        reader.feed(b"x" * MESSAGE_LIMIT)
        reader.next_value()
        assert reader.held <= MESSAGE_LIMIT


def test_a_peer_that_speaks_no_json_is_hopeless() -> None:
    session = commanding()
    answers(session, b"GET / HTTP/1.1\r\n" * (MALFORMED_LIMIT - 1))
    assert not session.not_qmp
    answers(session, b"GET / HTTP/1.1\r\n")
    assert session.not_qmp


def test_one_good_message_forgives_the_bad_ones() -> None:
    session = commanding()
    for _ in range(3):
        answers(session, b"x\n" * (MALFORMED_LIMIT - 1) + b'{"execute": "echo"}\n')
    assert not session.not_qmp


def test_noise_is_malformed_or_incomplete_and_never_more() -> None:
    noise = random.Random(5)
    reader = Reader()
    for _ in range(300):
        reader.feed(bytes(noise.choices(b'{}[]"\\,: \nabc019.-e\xff\x00', k=200)))
        while (found := reader.next_value()) is not None:
            assert isinstance(found, Malformed | Value)


def test_an_event_without_data_has_no_data_member() -> None:
    assert json.loads(encode_event("STOP", {}, 12.000345)) == {
        "event": "STOP",
        "timestamp": {"seconds": 12, "microseconds": 345},
    }


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (b"{'execute': 'echo', 'arguments': {'a': 1}}", {"a": 1}),
        (rb"""{'execute': 'echo', "arguments": {'it\'s': 'say "hi" \\ {['}}""", {"it's": 'say "hi" \\ {['}),
        (rb"""{"execute": "echo", "arguments": {"it's": "don\'t"}}""", {"it's": "don't"}),
    ],
)
def test_strings_may_have_single_quotes_as_in_qemu(text: bytes, meant: dict[str, Any]) -> None:
    assert answers(commanding(), text) == [{"return": meant}]


def test_a_reply_that_takes_its_time_holds_back_the_next() -> None:
    deferred = DeferredReply()
    session = QmpSession(lambda name, arguments: deferred if name == "slow" else name)
    replies: list[bytes] = []
    session.feed(b'{"execute": "qmp_capabilities"} {"execute": "slow", "id": 1} {"execute": "next"}')
    while session.step(replies.append):
        pass
    assert session.waiting and len(replies) == 1
    deferred.resolve("done")
    while session.step(replies.append):
        pass
    assert [json.loads(each) for each in replies[1:]] == [{"return": "done", "id": 1}, {"return": "next"}]


def test_a_reply_that_takes_its_time_may_be_an_error() -> None:
    deferred = DeferredReply()
    session = QmpSession(lambda name, arguments: deferred)
    replies: list[bytes] = []
    session.feed(b'{"execute": "qmp_capabilities"} {"execute": "slow"}')
    while session.step(replies.append):
        pass
    deferred.refuse(ControlError("hung"))
    assert json.loads(replies[1])["error"] == {"class": "GenericError", "desc": "hung"}
