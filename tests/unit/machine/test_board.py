"""What KVM holds back of the guest's port writes, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.rtc import D_VALID, REG_B, REG_D
from pyvmm.loop import Loop
from pyvmm.machine.board import COALESCED, Board


@pytest.fixture
def console() -> list[bytes]:
    return []


@pytest.fixture
def board(console: list[bytes]) -> Iterator[Board]:
    loop = Loop()
    yield Board(
        1,
        loop,
        irq=lambda line, level: None,
        reset=lambda reason: None,
        power_off=lambda: None,
        console=console.append,
        agent=lambda data: None,
    )
    loop.close()


def test_serial_output_that_waited_reaches_the_console_in_order(board: Board, console: list[bytes]) -> None:
    board.coalesced(0x3F8, b"hel")
    board.coalesced(0x3F8, b"lo")
    board.flush()
    assert b"".join(console) == b"hello"


def test_of_the_clocks_indices_that_waited_the_last_counts(board: Board) -> None:
    board.coalesced(0x70, bytes([REG_B, REG_D]))
    assert board.ports.read(0x71, 1) == D_VALID


def test_nothing_else_waits() -> None:
    assert COALESCED == (0x3F8, 0x2F8, 0x70)
