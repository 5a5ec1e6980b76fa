"""Bytes given to `pyvmm explain`: how they are written, what they are taken for."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from pyvmm.decode.payloads import decoders
from pyvmm.devices.balloon import protocol as dm
from pyvmm.devices.ic import protocol as ic
from pyvmm.devices.netvsc import nvsp, rndis
from pyvmm.devices.storvsc import protocol as storvsc
from pyvmm.errors import ConfigError
from pyvmm.explain import hexdump
from pyvmm.explain.packets import forms, read_as, readings
from pyvmm.hyperv import tlfs
from pyvmm.vmbus import protocol as vmbus
from pyvmm.vmbus.packet import PacketHeader, PacketType

DATA = bytes.fromhex("0f000000000000000100000000000500")


@pytest.mark.parametrize(
    "text",
    [
        "0f000000000000000100000000000500",
        "0F 00 00 00 00 00 00 00 01 00 00 00 00 00 05 00",
        "0f:00:00:00:00:00:00:00:01:00:00:00:00:00:05:00",
        ", ".join(f"0x{each:02x}" for each in DATA),
        r"b'\x0f\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x05\x00'",
        "00000000: 0f00 0000 0000 0000 0100 0000 0000 0500  ................\n",
        "00000000  0f 00 00 00 00 00 00 00  01 00 00 00 00 00 05 00  |................|\n00000010\n",
        "[   1.234] hv: 00000000: 0f 00 00 00 00 00 00 00 01 00 00 00 00 00 05 00  ................\n",
        "00000000: 0f00 0000 0000 0000  ........\n00000008: 0100 0000 0000 0500  ........\n",
    ],
)
def test_bytes_are_read_in_the_ways_people_write_them(text: str) -> None:
    assert hexdump.parse(text) == DATA


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0x40000083", False),
        ("15", False),
        ("12345678", False),
        ("SIMP", False),
        ("deadbeef", True),
        ("0f000000", True),
        ("0f 00", True),
        ("0f00000000000000010000000000", True),
        ("525074dc-8985-46e2-8057-a307dc18a502", False),
        ("facade", False),
    ],
)
def test_bytes_are_told_from_numbers_and_names(text: str, bytes_: bool) -> None:
    assert hexdump.looks_like_bytes(text) is bytes_


@pytest.mark.parametrize("text", ["", "0", "0f0", "zz", "0f" * (hexdump.SIZE_LIMIT + 1), "\n\n", "ü"])
def test_bad_bytes_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as failed:
        hexdump.parse(text)
    assert "\n" not in str(failed.value)


def test_a_file_holds_bytes_or_their_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(DATA.hex())
    (tmp_path / "raw").write_bytes(DATA)
    assert hexdump.read(tmp_path / "text") == hexdump.read(tmp_path / "raw") == DATA
    (tmp_path / "words").write_text("no digits here")
    for name in ("words", "missing", "."):
        with pytest.raises(ConfigError):
            hexdump.read(tmp_path / name)


@pytest.mark.parametrize("cls", [*get_args(vmbus.GuestMessage), *get_args(vmbus.HostMessage)])
def test_each_vmbus_message_is_recognized(cls: type[vmbus.Message]) -> None:
    data = cls.TYPE.to_bytes(4, "little").ljust(cls.SIZE, b"\0")
    assert [each.decoded.name for each in readings(data) if each.form == "message"] == [cls.TYPE.name]


def test_a_message_is_recognized_in_a_hypercall_and_in_a_slot() -> None:
    call = tlfs.PostMessageInput(1, 0, 1, len(DATA)).build() + DATA
    assert [(each.form, each.decoded.name) for each in readings(call)] == [("post-message", "VERSION_RESPONSE")]
    slot = (tlfs.MessageHeader(1, len(DATA), 0, 0, 0).build() + DATA).ljust(256, b"\0")
    assert ("synic", "VERSION_RESPONSE") in [(each.form, each.decoded.name) for each in readings(slot)]


def test_a_packet_is_read_as_that_of_the_device_whose_message_it_holds() -> None:
    body = dm.BalloonRequest.of(7, 4096).build()
    data = PacketHeader(PacketType.IN_BAND, 2, 2 + len(body) // 8, 0, 17).build() + body
    (found,) = readings(data)
    assert (found.form, found.decoded.name, found.kind) == ("packet", "BALLOON_REQUEST", "balloon")
    assert found.decoded.value("pages") == 4096
    assert [each.form for each in readings(body)] == ["hv-balloon"]


def test_a_service_is_recognized_by_its_frame() -> None:
    body = ic.HeartbeatBody(5).build()
    head = ic.IcHeader(1, ic.IcHeader.SIZE - ic.PIPE_SIZE + len(body), 3, 0, 1, 3, 0, len(body), 0, 0, 2, 0)
    assert "HEARTBEAT" in [each.decoded.name for each in readings(head.build() + body)]


@pytest.mark.parametrize("form", [*forms()])
def test_any_bytes_can_be_read_in_each_form(form: str) -> None:
    for size in (1, 7, 16, 40, 300):
        assert read_as(bytes(range(256))[:size] * 2, form).words


def test_unknown_bytes_name_the_forms() -> None:
    with pytest.raises(ConfigError, match="--as says what they are"):
        readings(b"\xde\xad\xbe\xef" * 4)
    with pytest.raises(ConfigError, match="no form is called"):
        read_as(DATA, "nonsense")


def test_each_device_that_can_be_decoded_is_a_form() -> None:
    assert set(decoders()) <= set(forms())


def test_packets_of_network_card_and_scsi_controller_are_recognized() -> None:
    assert [(each.form, each.decoded.name) for each in readings(nvsp.Init(2, 0x60001).message())] == [
        ("netvsc", "INIT")
    ]
    answer = rndis.query_complete(7, rndis.Status.SUCCESS, b"abcd")
    assert ("rndis", "QUERY_COMPLETE") in [(each.form, each.decoded.name) for each in readings(answer)]
    body = storvsc.unsolicited(storvsc.Operation.ENUMERATE_BUS)
    assert [(each.form, each.decoded.name) for each in readings(body)] == [("storvsc", "ENUMERATE_BUS")]
    data = PacketHeader(PacketType.IN_BAND, 2, 2 + len(body) // 8, 0, 1).build() + body
    (found,) = readings(data)
    assert (found.words, found.decoded.name) == ("packet of a ring, of storvsc", "ENUMERATE_BUS")
