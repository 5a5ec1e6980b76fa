"""SCSI commands: CDBs to answers, without files."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Any

import pytest

from pyvmm.devices.storvsc.scsi import commands, inquiry
from pyvmm.devices.storvsc.scsi.commands import execute
from pyvmm.devices.storvsc.scsi.sense import SPACE_EXHAUSTED, CheckCondition
from pyvmm.devices.storvsc.scsi.work import Discard, Fill, Flush, Read, Reply, Write

TIB = 1 << 40


@dataclass
class Disk:
    sectors: int = 2048
    read_only: bool = False
    serial: str = "S1"
    sector_size: int = 512
    physical_size: int = 4096
    max_transfer: int = 1 << 20


def cdb(*parts: Any) -> bytes:
    form, *values = parts
    return pack(form, *values).ljust(16, b"\0")


@pytest.mark.parametrize(
    ("command", "work"),
    [
        (cdb(">BBHBB", 0x08, 0x01, 2, 3, 0), Read((1 << 16 | 2) * 512, 3 * 512)),
        (cdb(">BBHBB", 0x08, 0, 0, 0, 0), Read(0, 256 * 512)),
        (cdb(">BBHBB", 0x0A, 0, 1, 1, 0), Write(512, 512)),
        (cdb(">BBIBH", 0x28, 0, 5, 0, 6), Read(5 * 512, 6 * 512)),
        (cdb(">BBIBH", 0x2A, 8, 5, 0, 6), Write(5 * 512, 6 * 512, through=True)),
        (cdb(">BBII", 0xA8, 0, 5, 6), Read(5 * 512, 6 * 512)),
        (cdb(">BBII", 0xAA, 0, 5, 6), Write(5 * 512, 6 * 512)),
        (cdb(">BBQI", 0x88, 0, 1 << 32, 6), Read(512 << 32, 6 * 512)),
        (cdb(">BBQI", 0x8A, 0, 1 << 32, 6), Write(512 << 32, 6 * 512)),
        (cdb(">BBIBH", 0x35, 0, 0, 0, 0), Flush()),
        (cdb(">BBQI", 0x91, 0, 0, 0), Flush()),
        (cdb(">BBIBH", 0x28, 0, 5, 0, 0), Reply()),
        (cdb(">BBIBH", 0x2F, 0, 5, 0, 9), Reply()),
    ],
)
def test_reading_and_writing_commands_name_bytes(command: bytes, work: object) -> None:
    assert execute(Disk(sectors=TIB // 512 * 8), command) == work


@pytest.mark.parametrize("opcode", [0x88, 0x8A, 0x8F, 0x91, 0x93])
@pytest.mark.parametrize(("block", "blocks"), [(2048, 1), (2047, 2), ((1 << 64) - 1, 1), (0, (1 << 32) - 1)])
def test_range_past_the_end_is_refused(opcode: int, block: int, blocks: int) -> None:
    with pytest.raises(CheckCondition, match="5/21/00"):
        execute(Disk(), cdb(">BBQI", opcode, 0, block, blocks), bytes(512))


def test_capacity_is_told_in_both_forms() -> None:
    huge = Disk(sectors=1 << 33)
    assert execute(huge, cdb(">B", 0x25)) == Reply(pack(">II", 0xFFFFFFFF, 512))
    answer = execute(huge, cdb(">BBQI", 0x9E, 0x10, 0, 32))
    assert isinstance(answer, Reply)
    assert unpack_from(">QIBBB", answer.data) == ((1 << 33) - 1, 512, 0, 3, 0x80)
    assert execute(Disk(), cdb(">BBQI", 0x9E, 0x10, 0, 12)) == Reply(pack(">QI", 2047, 512))
    with pytest.raises(CheckCondition, match="5/24/00"):
        execute(huge, cdb(">BB", 0x9E, 0x12))


def test_pages_of_vital_data_are_those_that_page_zero_lists() -> None:
    supported = execute(Disk(), cdb(">BBBH", 0x12, 1, 0, 255))
    assert isinstance(supported, Reply)
    assert supported.data == bytes([0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    for page in range(256):
        command = cdb(">BBBH", 0x12, 1, page, 255)
        if page in supported.data[4:]:
            answer = execute(Disk(), command)
            assert isinstance(answer, Reply)
            assert unpack_from(">BBH", answer.data) == (0, page, len(answer.data) - 4)
        else:
            with pytest.raises(CheckCondition, match="5/24/00"):
                execute(Disk(), command)


def test_limits_announce_unmap_to_writable_disks_only() -> None:
    for read_only, (blocks, descriptors, fill) in ((False, (0xFFFFFFFF, 256, 16384)), (True, (0, 0, 0))):
        page = inquiry.vital(Disk(read_only=read_only), 0xB0)
        assert len(page) == 64
        assert unpack_from(">II", page, 8) == (2048, 2048)
        assert unpack_from(">II", page, 20) == (blocks, descriptors)
        assert unpack_from(">Q", page, 36) == (fill,)
        assert inquiry.vital(Disk(read_only=read_only), 0xB2)[5] == (0 if read_only else 0xE0)


@pytest.mark.parametrize(("read_only", "flags"), [(False, 0x10), (True, 0x90)])
def test_mode_pages_tell_write_protection_and_the_cache(read_only: bool, flags: int) -> None:
    for command, head in (
        (cdb(">BBBBB", 0x1A, 0, 0x3F, 0, 255), 4),
        (cdb(">BBBBBBBH", 0x5A, 0, 8, 0, 0, 0, 0, 99), 8),
    ):
        answer = execute(Disk(read_only=read_only), command)
        assert isinstance(answer, Reply)
        assert answer.data[head - (2 if head == 4 else 5)] == flags
        assert answer.data[head : head + 3] == bytes([8, 18, 4])
    changeable = execute(Disk(), cdb(">BBBBB", 0x1A, 0, 0x48, 0, 255))
    assert isinstance(changeable, Reply)
    assert changeable.data[4:7] == bytes([8, 18, 0])


@pytest.mark.parametrize(("page", "sub_page"), [(0x05, 0), (0x08, 2), (0xC8, 0)])
def test_unknown_mode_page_is_refused(page: int, sub_page: int) -> None:
    with pytest.raises(CheckCondition, match="5/24/00"):
        execute(Disk(), cdb(">BBBBB", 0x1A, 0, page, sub_page, 255))


def test_allocation_length_limits_an_answer() -> None:
    for command in (cdb(">BBBH", 0x12, 0, 0, 5), cdb(">BBBBB", 0x1A, 0, 0x3F, 0, 5), cdb(">BBBBB", 0x03, 0, 0, 0, 5)):
        answer = execute(Disk(), command)
        assert isinstance(answer, Reply)
        assert len(answer.data) == 5


def unmap_list(*ranges: tuple[int, int], count: int | None = None) -> tuple[bytes, bytes]:
    entries = b"".join(pack(">QI4x", *each) for each in ranges)
    listed = len(entries) if count is None else 16 * count
    data = pack(">HH4x", listed + 6, listed) + entries
    return cdb(">BBIBH", 0x42, 0, 0, 0, len(data)), data


def test_unmap_lists_ranges() -> None:
    command, data = unmap_list((0, 8), (16, 0), (2040, 8))
    assert execute(Disk(), command, data) == Discard([(0, 4096), (2040 * 512, 4096)], len(data))
    assert execute(Disk(), cdb(">B", 0x42)) == Reply()


@pytest.mark.parametrize(
    ("command", "data", "sense"),
    [
        (*unmap_list((2048, 1)), "5/21/00"),
        (*unmap_list(*[(0, 1)] * 257), "5/26/00"),
        (unmap_list((0, 1))[0], b"\0" * 8, "5/1a/00"),
        (cdb(">BBIBH", 0x42, 0, 0, 0, 4), b"\0" * 4, "5/1a/00"),
        (cdb(">BBIBH", 0x42, 1, 0, 0, 24), b"\0" * 24, "5/24/00"),
        (cdb(">BBQI", 0x93, 0, 0, 0), bytes(512), "5/24/00"),
        (cdb(">BBQI", 0x93, 0, 0, 8), bytes(100), "5/24/00"),
        (cdb(">BBQI", 0x93, 0x10, 0, 8), bytes(512), "5/24/00"),
        (cdb(">BBIBH", 0x2F, 2, 0, 0, 1), b"", "5/24/00"),
        (cdb(">BB", 0x15, 0x10), b"\x01", "5/26/00"),
        (cdb(">BBBH", 0x12, 0, 0x80, 5), b"", "5/24/00"),
        (cdb(">B", 0xFF), b"", "5/20/00"),
    ],
)
def test_bad_commands_have_their_sense_data(command: bytes, data: bytes, sense: str) -> None:
    with pytest.raises(CheckCondition, match=sense):
        execute(Disk(), command, data)


def test_write_same_is_limited_and_takes_a_block_or_none() -> None:
    big = Disk(sectors=TIB // 512)
    with pytest.raises(CheckCondition, match="5/24/00"):
        execute(big, cdb(">BBQI", 0x93, 1, 0, inquiry.FILL_BYTES // 512 + 1))
    assert execute(big, cdb(">BBQI", 0x93, 9, 0, 8)) == Fill(0, 4096, bytes(512), 0, unmap=True)
    assert execute(big, cdb(">BBIBH", 0x41, 0, 8, 0, 8), b"z" * 600) == Fill(4096, 4096, b"z" * 512, 512)


def test_every_command_of_noise_has_an_answer_or_sense_data() -> None:
    import random

    noise = random.Random(15)
    for _ in range(5000):
        opcode = noise.choice([*commands.COMMANDS, noise.randrange(256)])
        command = bytes([opcode]) + noise.randbytes(15)
        try:
            execute(Disk(), command, noise.randbytes(noise.randrange(600)))
        except CheckCondition as failure:
            assert len(failure.sense.build()) == 18


def test_sense_data_has_the_fixed_format() -> None:
    data = SPACE_EXHAUSTED.build()
    assert (data[0], data[2], data[7], data[12], data[13], len(data)) == (0x70, 7, 10, 0x27, 7, 18)
