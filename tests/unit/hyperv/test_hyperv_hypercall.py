"""Hypercalls: what is answered with which status."""

from __future__ import annotations

import threading
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.hyperv import hypercall
from pyvmm.hyperv.hypercall import HYPERCALL_PORT, Hypercalls, page_code
from pyvmm.hyperv.tlfs import HypercallStatus as Status
from pyvmm.memory import GuestMemory

POST, SIGNAL = 0x5C, 0x5D
FAST = 1 << 16
INPUT = 0x2000


class Setup:
    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.messages: list[tuple[int, int, bytes]] = []
        self.signals: list[int] = []
        self.calls = Hypercalls(memory, self._signal)
        self.calls.listen(self._listen)
        self.answer = Status.SUCCESS

    def _listen(self, connection: int, type: int, payload: bytes) -> int:
        self.messages.append((connection, type, payload))
        return self.answer

    def _signal(self, connection: int) -> bool:
        self.signals.append(connection)
        return connection == 0x10001

    def post(self, payload: bytes = b"abc", *, gpa: int = INPUT, size: int | None = None, connection: int = 4) -> int:
        head = pack("<IIII", connection, 0, 1, len(payload) if size is None else size)
        self.memory.write(gpa, (head + payload).ljust(64, b"\0")[: 0x20000 - gpa])
        return self.calls.call(POST, gpa, 0)


@pytest.fixture
def setup(memory: GuestMemory) -> Setup:
    return Setup(memory)


def test_a_posted_message_reaches_the_listener(setup: Setup) -> None:
    assert setup.post(b"hello") == Status.SUCCESS
    assert setup.messages == [(4, 1, b"hello")]


def test_the_listener_s_refusal_is_the_guest_s_status(setup: Setup) -> None:
    setup.answer = Status.INSUFFICIENT_BUFFERS
    assert setup.post() == Status.INSUFFICIENT_BUFFERS


def test_the_longest_payload_is_240_bytes(setup: Setup) -> None:
    assert setup.post(size=240) == Status.SUCCESS
    assert setup.post(size=241) == Status.INVALID_HYPERCALL_INPUT
    assert setup.post(size=0xFFFFFFFF) == Status.INVALID_HYPERCALL_INPUT
    assert len(setup.messages) == 1


def test_only_24_bits_name_a_connection(setup: Setup) -> None:
    setup.post(connection=0xFF000004)
    assert setup.messages[0][0] == 4


@pytest.mark.parametrize("gpa", [INPUT + 4, INPUT + 1, INPUT + 0xF08])
def test_an_unaligned_or_page_crossing_block_is_refused(setup: Setup, gpa: int) -> None:
    assert setup.post(gpa=gpa) == Status.INVALID_ALIGNMENT


def test_a_block_that_ends_with_its_page_is_taken(setup: Setup) -> None:
    assert setup.post(gpa=INPUT + 0x1000 - 256) == Status.SUCCESS


@pytest.mark.parametrize("code", [POST, SIGNAL])
@pytest.mark.parametrize("gpa", [0x20000, 1 << 52, 0xFFFFFFFFFFFFF000])
def test_a_block_outside_ram_is_refused(setup: Setup, code: int, gpa: int) -> None:
    assert setup.calls.call(code, gpa, 0) == Status.INVALID_PARAMETER


def test_a_message_cannot_be_posted_fast(setup: Setup) -> None:
    assert setup.calls.call(POST | FAST, 0, 0) == Status.INVALID_HYPERCALL_CODE


def test_signals_come_fast_and_from_memory(setup: Setup) -> None:
    assert setup.calls.call(SIGNAL | FAST, 0x10001, 0) == Status.SUCCESS
    setup.memory.write(INPUT, pack("<IHH", 0x10001, 0, 0))
    assert setup.calls.call(SIGNAL, INPUT, 0) == Status.SUCCESS
    assert setup.signals == [0x10001] * 2


def test_a_signal_to_an_unknown_connection_is_refused(setup: Setup) -> None:
    assert setup.calls.call(SIGNAL | FAST, 7, 0) == Status.INVALID_CONNECTION_ID


def test_a_flag_number_is_refused(setup: Setup) -> None:
    assert setup.calls.call(SIGNAL | FAST, 0x10001 | 1 << 32, 0) == Status.INVALID_PORT_ID


def test_an_unaligned_signal_block_is_refused(setup: Setup) -> None:
    assert setup.calls.call(SIGNAL, INPUT + 4, 0) == Status.INVALID_ALIGNMENT


@pytest.mark.parametrize("code", [0, 1, 8, 0x50, 0x5B, 0x5E, 0xFFFF])
def test_other_calls_do_not_exist(setup: Setup, code: int) -> None:
    assert setup.calls.call(code, INPUT, 0) == Status.INVALID_HYPERCALL_CODE


@pytest.mark.parametrize("bit", [17, 26, 27, 30, 31, 32, 43, 44, 47, 48, 59, 60, 63])
def test_bits_that_have_no_place_in_these_calls_are_refused(setup: Setup, bit: int) -> None:
    assert setup.calls.call(SIGNAL | FAST | 1 << bit, 0x10001, 0) == Status.INVALID_HYPERCALL_INPUT
    assert not setup.signals


def test_without_a_listener_there_is_no_connection(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercall, "LISTENER_WAIT", 0.0)
    calls = Hypercalls(memory, lambda connection: False)
    assert calls.call(POST, INPUT, 0) == Status.INVALID_CONNECTION_ID


def test_a_post_waits_for_a_bus_that_is_still_being_built(memory: GuestMemory) -> None:
    calls = Hypercalls(memory, lambda connection: False)
    answers: list[int] = []
    vcpu = threading.Thread(target=lambda: answers.append(calls.call(POST, INPUT, 0)))
    vcpu.start()
    calls.listen(lambda connection, type, payload: Status.SUCCESS)
    vcpu.join(10)
    assert answers == [Status.SUCCESS]


_memory = GuestMemory.flat(0x4000)


@settings(max_examples=200)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_call_raises(control: int, first: int, second: int) -> None:
    calls = Hypercalls(_memory, lambda connection: False)
    calls.listen(lambda connection, type, payload: Status.SUCCESS)
    for word in (control, POST, SIGNAL, SIGNAL | FAST):
        assert 0 <= calls.call(word, first, second) < 1 << 16


def test_the_page_is_endbr_out_ret_and_traps() -> None:
    code = page_code()
    assert len(code) == 4096
    assert code[:7] == bytes.fromhex("f30f1efa e6") + bytes([HYPERCALL_PORT, 0xC3])
    assert set(code[7:]) == {0xCC}
