"""Layouts of the channel messages, against the structures of Linux include/linux/hyperv.h."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import GuestError, GuestProtocolError, WireError
from pyvmm.vmbus import protocol as p

# Structure: size, then the offset of some fields in the C structure.
LAYOUTS = {
    p.OfferChannel: (196, {"device_type": 8, "instance": 24, "flags": 56, "mmio_mib": 58, "user_defined": 60,
                           "sub_channel": 180, "relid": 184, "monitor_id": 188, "monitor_allocated": 189,
                           "dedicated": 190, "connection_id": 192}),
    p.Rescind: (12, {"relid": 8}),
    p.RequestOffers: (8, {}),
    p.AllOffersDelivered: (8, {}),
    p.OpenChannel: (148, {"relid": 8, "open_id": 12, "ring_gpadl": 16, "target_vp": 20, "receive_offset": 24,
                          "user_data": 28}),
    p.OpenResult: (20, {"relid": 8, "open_id": 12, "status": 16}),
    p.CloseChannel: (12, {"relid": 8}),
    p.GpadlHeader: (20, {"relid": 8, "gpadl": 12, "range_bytes": 16, "range_count": 18}),
    p.GpadlBody: (16, {"number": 8, "gpadl": 12}),
    p.GpadlCreated: (20, {"relid": 8, "gpadl": 12, "status": 16}),
    p.GpadlTeardown: (16, {"relid": 8, "gpadl": 12}),
    p.GpadlTorndown: (12, {"gpadl": 8}),
    p.RelidReleased: (12, {"relid": 8}),
    p.InitiateContact: (40, {"version": 8, "target_vp": 12, "target": 16, "monitor_page1": 24, "monitor_page2": 32}),
    p.VersionResponse: (16, {"supported": 8, "state": 9, "connection_id": 12}),
    p.VersionResponseFeatures: (20, {"feature_flags": 16}),
    p.Unload: (8, {}),
    p.UnloadResponse: (8, {}),
    p.TlConnectRequest: (40, {"endpoint": 8, "service": 24}),
    p.ModifyChannel: (16, {"relid": 8, "target_vp": 12}),
    p.TlConnectResult: (44, {"endpoint": 8, "service": 24, "status": 40}),
    p.ModifyChannelResponse: (16, {"relid": 8, "status": 12}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_structure_lies_as_in_c(kind: type[p.Message]) -> None:
    size, offsets = LAYOUTS[kind]
    assert size == kind.SIZE
    fields = _field_offsets(("header", *kind._names), kind._struct.format.removeprefix("<"))
    assert {name: fields[name] for name in offsets} == offsets


def _field_offsets(names: tuple[str, ...], formats: str) -> dict[str, int]:
    """Offset of each field, from the struct format's codes."""
    at, found = 0, {}
    for name, code in zip(names, re.findall(r"\d*[a-zA-Z]", formats), strict=True):
        found[name] = at
        at += struct.calcsize("<" + code)
    return found


def test_gpadl_header_holds_26_pages_and_ignores_rounding() -> None:
    words = struct.pack("<27Q", 26 * 4096, *range(26))
    data = p.GpadlHeader(3, 7, 216, 1).build() + words
    assert len(data) == 236
    message = p.parse(data + bytes(4))
    assert isinstance(message, p.GpadlHeader)
    assert (message.relid, message.gpadl, len(message.words)) == (3, 7, 27)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_built_message_carries_its_type_and_parses_back(kind: type[p.Message]) -> None:
    data = kind.TYPE.to_bytes(4, "little") + bytes(4) + bytes(range(kind.SIZE - 8))
    assert kind.parse(data).build() == data


@pytest.mark.parametrize("kind", sorted(p.GUEST_MESSAGES))
def test_short_message_is_refused(kind: int) -> None:
    for size in range(8, 16 if kind == p.MessageType.GPADL_BODY else 12):
        data = kind.to_bytes(4, "little") + bytes(size - 4)
        if p.GUEST_MESSAGES[kind] in (p.RequestOffers, p.Unload):
            p.parse(data)
        else:
            with pytest.raises(WireError):
                p.parse(data)


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(241)])
def test_message_of_impossible_size_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        p.parse(data)


@pytest.mark.parametrize("kind", [0, 1, 2, 18, 19, 25, 0xFFFFFFFF])
def test_type_that_no_guest_sends_is_refused(kind: int) -> None:
    with pytest.raises(GuestProtocolError):
        p.parse(kind.to_bytes(4, "little") + bytes(200))


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise_guest_error(data: bytes) -> None:
    try:
        p.parse(data)
    except GuestError:
        pass


def test_contact_fields_of_5_0_lie_in_the_interrupt_page_field() -> None:
    message = p.InitiateContact(0x60000, 0, 0x10 << 32 | 2, 0, 0)
    assert (message.sint, message.feature_flags) == (2, 0x10)
