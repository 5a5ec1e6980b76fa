"""Messages, packets and hypercalls as rows of named fields."""

from __future__ import annotations

from typing import get_args
from uuid import UUID

import pytest

from pyvmm import decode
from pyvmm.bits import Bits
from pyvmm.decode.fields import meaning
from pyvmm.decode.payloads import decoders
from pyvmm.decode.text import lines
from pyvmm.devices.balloon import protocol as dm
from pyvmm.devices.ic import protocol as ic
from pyvmm.hyperv import tlfs
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import Packet, PacketType, transfer_pages
from pyvmm.vmbus.ring import build_packet
from pyvmm.wire import layout

CONTACT = vmbus.InitiateContact(vmbus.Version.WIN10_5_3, 1, 2, 0x1000, 0x2000).build()


def in_band(payload: bytes) -> bytes:
    return build_packet(Packet(PacketType.IN_BAND, 1, 7, payload))


def shown(decoded: decode.Decoded) -> list[str]:
    return [" ".join(line.split()) for line in lines(decoded)]


def test_a_message_is_its_header_and_its_fields_with_their_meanings() -> None:
    decoded = decode.message(CONTACT)
    assert decoded.name == "INITIATE_CONTACT"
    assert shown(decoded)[:5] == [
        "struct vmbus_channel_message_header",
        "+0 0e 00 00 00 type 14 INITIATE_CONTACT",
        "+4 00 00 00 00 padding 0",
        "struct vmbus_channel_initiate_contact",
        "+8 03 00 05 00 version 0x50003 WIN10_5_3",
    ]


@pytest.mark.parametrize("cls", [*get_args(vmbus.GuestMessage), *get_args(vmbus.HostMessage)])
def test_each_message_is_known_by_its_type_and_covers_its_bytes(cls: type[vmbus.Message]) -> None:
    data = cls.parse(bytes(cls.SIZE)).build()
    decoded = decode.message(data)
    assert decoded.name == cls.TYPE.name
    assert b"".join(row.data for row in decoded.rows) == data


@pytest.mark.parametrize("cut", range(len(CONTACT)))
def test_a_message_that_is_cut_off_ends_in_a_row_that_says_so(cut: int) -> None:
    last = decode.message(CONTACT[:cut]).rows[-1]
    assert last.name == "(cut off)"


def test_a_message_of_an_unknown_type_gives_its_bytes() -> None:
    decoded = decode.message(bytes([99, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]))
    assert decoded.name == "message type 99"
    assert decoded.rows[-1].value == b"\1\2\3"


def test_a_guid_is_named_as_the_device_that_it_is() -> None:
    device = UUID("525074dc-8985-46e2-8057-a307dc18a502")
    offer = vmbus.OfferChannel(device, device, bytes(16), 0, 0, bytes(120), 0, 0, 3, 0, 0, 1, 19)
    row = decode.message(offer.build()).rows[2]
    assert (row.name, row.value, row.meaning) == ("device_type", device, "Dynamic memory")


def test_version_6_answers_with_features() -> None:
    answer = vmbus.VersionResponseFeatures(1, 0, 0, 5, 3).build()
    assert decode.message(answer).value("feature_flags") == 3
    assert decode.message(answer[:16]).value("feature_flags") is None


def test_pages_of_a_gpadl_are_listed_up_to_a_limit() -> None:
    header = vmbus.GpadlHeader(1, 2, 8 * 26, 1)
    header.words = tuple(range(25))
    rows = decode.message(header.build()).rows
    assert [row.name for row in rows][6:] == [*(f"word[{n}]" for n in range(8)), "... word[24]"]


def test_a_balloon_response_shows_its_ranges() -> None:
    decoded = decode.packet(in_band(dm.BalloonResponse(4, True, [(256, 3), (1024, 512)]).build()), "hv-balloon")
    assert decoded.name == "BALLOON_RESPONSE"
    assert shown(decoded)[-3:] == [
        "+28 05 00 00 00 count_word 5 more=1 count=2",
        "+32 00 01 00 00 00 03 00 00 range[0] 0x30000000100 start=256 pages=3",
        "+40 00 04 00 00 00 00 02 00 range[1] 0x2000000000400 start=1024 pages=512",
    ]


def test_ranges_that_are_announced_and_missing_are_said_to_be_missing() -> None:
    body = bytearray(dm.UnballoonRequest(4, False, [(256, 3)]).build())
    body[12:16] = (70000).to_bytes(4, "little")
    rows = decode.packet(in_band(bytes(body)), "hv-balloon").rows
    assert [(row.name, row.text) for row in rows][-1] == ("(cut off)", "69999 of 70000 range are not there")


def test_a_hot_add_shows_range_and_region() -> None:
    rows = decode.packet(in_band(dm.HotAddRequest(4, (256, 3), (1024, 512)).build()), "hv-balloon").rows
    assert [(row.name, row.meaning) for row in rows][-2:] == [
        ("range", "start=256 pages=3"),
        ("region", "start=1024 pages=512"),
    ]


def test_a_service_shows_its_frame_and_body() -> None:
    head = ic.IcHeader(1, 60, 3, 0, ic.IcType.HEARTBEAT, 3, 0, 40, 0, 1, 6, 0)
    decoded = decode.packet(in_band(head.build() + ic.HeartbeatBody(9).build()), "heartbeat")
    assert decoded.name == "HEARTBEAT"
    assert "flags 6 REQUEST | RESPONSE" in " ".join(shown(decoded))
    assert decoded.value("sequence") == 9


def test_a_device_without_a_decoder_shows_its_bytes() -> None:
    decoded = decode.packet(in_band(b"hello there"), "mirror")
    assert decoded.name == "IN_BAND"
    assert decoded.rows[-1].meaning == "'hello there'"


def test_a_descriptor_is_decoded_before_the_payload() -> None:
    packet = Packet(PacketType.TRANSFER_PAGES, 1, 7, bytes(8), transfer_pages(0xCAFE, [(60, 0), (90, 2048)]))
    rows = decode.packet(build_packet(packet), "netvsc").rows
    names = [row.name for row in rows][5:]
    assert names[:6] == ["set", "count", *(f"length, offset[{n}]" for n in range(4))]


@pytest.mark.parametrize("head", ["06 00 00 00 02 00", "06 00 09 00 02 00", "06 00 02 00 ff ff"])
def test_a_packet_with_wrong_offsets_is_shown_all_the_same(head: str) -> None:
    data = bytes.fromhex(head).ljust(16, b"\0") + bytes(16)
    for channel in ("", *decoders()):
        assert decode.packet(data, channel).rows[0].name == "type"


def test_the_input_of_a_hypercall_holds_a_message() -> None:
    head = tlfs.PostMessageInput(4, 0, 1, len(CONTACT)).build()
    decoded = decode.post_message(head + CONTACT + bytes(200))
    assert decoded.name == "INITIATE_CONTACT"
    assert [row.offset for row in decoded.rows][-1] == 16 + 32


def test_a_slot_of_a_message_page_is_empty_or_a_timer_or_a_message() -> None:
    assert decode.synic_message(bytes(256)).name == "empty slot"
    timer = tlfs.MessageHeader(tlfs.MessageType.TIMER_EXPIRED, 24, 0, 0, 0).build() + bytes(240)
    assert decode.synic_message(timer).name == "TIMER_EXPIRED"
    slot = tlfs.MessageHeader(1, len(CONTACT), 1, 0, 2).build() + CONTACT
    decoded = decode.synic_message(slot)
    assert (decoded.name, decoded.rows[2].meaning) == ("INITIATE_CONTACT", "PENDING")


def test_a_hypercall_is_named_and_its_control_word_in_bits() -> None:
    decoded = decode.hypercall(0x1_0000_0000_0001_005D)
    assert (decoded.name, decoded.rows[0].meaning[:14]) == ("SIGNAL_EVENT", "code=93 fast=1")
    assert decode.hypercall(0xFFFF).name == "hypercall 0xffff"


@pytest.mark.parametrize(
    ("number", "kind", "expected"),
    [
        (6, vmbus.MessageType, "OPEN_RESULT"),
        (98, vmbus.MessageType, "unknown"),
        (0x105, ic.IcFlag, "TRANSACTION | RESPONSE | 0x100"),
        (0x20000, dm.Version, "2.0"),
        (0x100F3, tlfs.SintValue, "vector=243 masked=1 auto_eoi=0 polling=0"),
        (5, None, ""),
    ],
)
def test_a_number_means_what_its_class_says(number: int, kind: type[int] | None, expected: str) -> None:
    assert decode.meaning(number, kind) == expected


def test_declarations_name_classes_that_can_be_shown() -> None:
    for cls in (vmbus.MessageHeader, vmbus.InitiateContact, dm.CapabilitiesReport, ic.IcHeader, tlfs.MessageHeader):
        kinds = [field.meaning for field in layout(cls) if field.meaning]
        assert kinds, cls
        assert all(issubclass(kind, Bits) or decode.meaning(0, kind) is not None for kind in kinds)


def test_lines_keep_to_the_width() -> None:
    offer = vmbus.OfferChannel(UUID(int=1), UUID(int=2), b"x" * 16, 0, 0, b"y" * 120, 0, 0, 3, 0, 0, 1, 19)
    for width in (20, 40, 79):
        assert max(map(len, lines(decode.message(offer.build()), width))) <= width


def test_a_member_whose_number_is_0_has_its_name() -> None:
    assert meaning(0, ic.IcType) == "NEGOTIATE"
    assert meaning(250, ic.IcType) == "unknown"
