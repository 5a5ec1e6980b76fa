"""Structures as they lie in memory."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import GuestError, WireError
from pyvmm.wire import Guid, Wire, i32, u8, u16, u32, u64, wire


@wire
class Sample(Wire):
    """Every kind of field."""

    a: u8
    b: u16
    c: u32
    d: u64
    e: i32
    guid: Guid
    raw: Annotated[bytes, "5s"]


GUID = UUID("525074dc-8985-46e2-8057-a307dc18a502")


def test_fields_are_packed_without_padding() -> None:
    assert Sample.SIZE == 1 + 2 + 4 + 8 + 4 + 16 + 5


def test_numbers_are_little_endian_and_guids_in_the_windows_order() -> None:
    data = Sample(1, 2, 3, 4, -5, GUID, b"hello").build()
    assert data[:7] == bytes.fromhex("01 0200 03000000")
    assert data[15:19] == bytes.fromhex("fbffffff")
    assert data[19:35] == bytes.fromhex("dc745052 8589 e246 8057a307dc18a502")
    assert data[35:] == b"hello"


@given(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.uuids())
def test_parse_undoes_build(a: int, b: int, c: int, d: int, guid: UUID) -> None:
    sample = Sample(a, b, c, d, -1, guid, b"\0\1\2\3\4")
    assert Sample.parse(b"xx" + sample.build(), 2) == sample


@pytest.mark.parametrize(("data", "offset"), [(bytes(39), 0), (bytes(40), 1), (b"", 0), (bytes(80), -1)])
def test_too_few_bytes_are_the_guest_s_fault(data: bytes, offset: int) -> None:
    with pytest.raises(WireError, match=f"Sample at {offset}: needs 40"):
        Sample.parse(data, offset)
    assert issubclass(WireError, GuestError)


def test_trailing_bytes_are_left_alone() -> None:
    assert Sample.parse(bytes(100)).a == 0


def test_views_parse_without_a_copy_first() -> None:
    assert Sample.parse(memoryview(bytearray(b"\7" + bytes(39)))).a == 7
