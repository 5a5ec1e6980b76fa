"""The packets of the synthetic SCSI controller: vstor packets, a header and an SRB (SCSI request block).

Source: Linux drivers/scsi/storvsc_drv.c, struct vstor_packet, vmscsi_request.

    +0 operation u32 | +4 flags u32 | +8 status u32 (NTSTATUS) | +12 a union:
       QUERY_PROTOCOL_VERSION   version u16 | revision u16
       QUERY_PROPERTIES answer  0 u32 | sub-channels u16 | 0 u16 | flags u32 | largest transfer u32 | 0 u64
       CREATE_SUB_CHANNELS      count u16
       EXECUTE_SRB and answer   length u16 | srb_status u8 | scsi_status u8 | port, path, target, LUN u8
                                | CDB length, sense length, direction, 0 u8 | transfer length u32
                                | CDB (request) or sense data (answer), 20 bytes | more that hosts ignore

A packet has 64 bytes; Linux 5.10 sends the first of a controller with 48. An answer has the request's size, as Linux
6.1 and later drop shorter ones, and echoes what it does not set.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, pack_into, unpack_from
from typing import Annotated

from pyvmm.errors import WireError
from pyvmm.wire import Wire, u8, u16, u32, wire

PACKET_SIZE = 64
SHORT_SIZE = 48
"""Bytes of a packet up to version 4.2, and of the first ones of Linux 5.10."""

VERSIONS = (0x0602, 0x0600, 0x0501)
"""Versions that are served: Windows Server 2016, 2012 R2, 2012. Their packets are the same."""

COMPLETION_REQUESTED = 1
MULTI_CHANNEL = 1
SENSE_ROOM = 20


class Operation(IntEnum):
    """VSTOR_OPERATION_*: what a packet of the SCSI controller is. G: the guest sends it, H: the host.

    Source: Linux drivers/scsi/storvsc_drv.c, enum vstor_packet_operation.
    """

    COMPLETE_IO = 1  # H answers.
    REMOVE_DEVICE = 2  # H: a disk is gone.
    EXECUTE_SRB = 3  # G: a SCSI command.
    RESET_LUN = 4  # G resets a disk.
    RESET_ADAPTER = 5  # G resets the controller.
    RESET_BUS = 6  # G resets all disks.
    BEGIN_INITIALIZATION = 7  # G begins.
    END_INITIALIZATION = 8  # G ends the handshake.
    QUERY_PROTOCOL_VERSION = 9  # G proposes a version.
    QUERY_PROPERTIES = 10  # G asks how large a transfer may be, and for how many channels.
    ENUMERATE_BUS = 11  # H: a disk has come, look.
    CREATE_SUB_CHANNELS = 13  # G wants more channels.


class Status(IntEnum):
    """STATUS_*: the NTSTATUS of an answer. Linux only logs it for an SRB.

    Source: [MS-ERREF], "NTSTATUS Values".
    """

    SUCCESS = 0  # Done.
    IO_DEVICE_ERROR = 0xC0000185  # The command failed; sense data tells why.
    INVALID_DEVICE_STATE = 0xC0000184  # Not now: the handshake is not done.
    NO_SUCH_DEVICE = 0xC00000C0  # No disk has this LUN.
    INVALID_PARAMETER = 0xC000000D  # The request is wrong.
    REVISION_MISMATCH = 0xC0000059  # The version is not served.


class SrbStatus(IntEnum):
    """SRB_STATUS_*. Linux takes only SUCCESS without any flag for success."""

    SUCCESS = 0x01  # Done.
    ERROR = 0x04  # It failed; the SCSI status tells how.
    INVALID_REQUEST = 0x06  # The request is wrong.
    INVALID_LUN = 0x20  # No disk has this LUN; Linux removes it.
    AUTOSENSE_VALID = 0x80  # A flag: sense data is in the answer.


class Direction(IntEnum):
    """Who fills the memory that a request shares."""

    FROM_GUEST = 0
    TO_GUEST = 1
    NONE = 2


@wire
class Header(Wire):
    """struct vstor_packet, up to its union."""

    operation: Annotated[u32, Operation]
    flags: u32  # 1: the guest wants a completion
    status: Annotated[u32, Status]


@wire
class Srb(Wire):
    """struct vstor_packet with struct vmscsi_request: EXECUTE_SRB and its answer."""

    operation: Annotated[u32, Operation]
    flags: u32  # 1: the guest wants a completion
    status: Annotated[u32, Status]
    length: u16
    srb_status: Annotated[u8, SrbStatus]
    scsi_status: u8
    port: u8
    path: u8
    target: u8
    lun: u8
    cdb_length: u8
    sense_length: u8
    direction: Annotated[u8, Direction]
    reserved: u8
    transfer_length: u32
    cdb: Annotated[bytes, "16s"]  # in an answer the beginning of the sense data


_SRB = Srb._struct
_ANSWER = Struct("<III")
_SRB_ANSWER = Struct("<BB")


@dataclass(slots=True)
class Request:
    """One packet of the guest. `cdb` and what follows are meaningful for EXECUTE_SRB only."""

    packet: bytes
    operation: int
    path: int
    target: int
    lun: int
    direction: int
    length: int  # of the transfer
    sense_room: int
    cdb: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Request:
        """Read a packet. Raises WireError if it is too short, or its CDB or sense data too long."""
        if len(payload) < SHORT_SIZE:
            raise WireError(f"vstor packet: {len(payload)} bytes, needs {SHORT_SIZE}")
        operation, _, _, _, _, _, _, path, target, lun, cdb_size, room, direction, _, length, cdb = _SRB.unpack_from(
            payload
        )
        if operation == Operation.EXECUTE_SRB and (not cdb_size or cdb_size > 16):
            raise WireError(f"vstor packet: a CDB of {cdb_size} bytes")
        return cls(payload, operation, path, target, lun, direction, length, min(room, SENSE_ROOM), cdb)

    @property
    def version(self) -> int:
        """Return the version that QUERY_PROTOCOL_VERSION asks for."""
        return int(unpack_from("<H", self.packet, 12)[0])

    @property
    def sub_channels(self) -> int:
        """Return the number that CREATE_SUB_CHANNELS asks for."""
        return int(unpack_from("<H", self.packet, 12)[0])

    def answer(self, status: int = Status.SUCCESS) -> bytearray:
        """Return the packet that completes this one, with nothing but its header set."""
        size = SHORT_SIZE if len(self.packet) < PACKET_SIZE else PACKET_SIZE
        answer = bytearray(self.packet[:size])
        _ANSWER.pack_into(answer, 0, Operation.COMPLETE_IO, 0, status)
        return answer

    def answer_properties(self, *, sub_channels: int, max_transfer: int) -> bytearray:
        """Return the answer to QUERY_PROPERTIES."""
        answer = self.answer()
        flags = MULTI_CHANNEL if sub_channels else 0
        pack_into("<IHHIIQ", answer, 12, 0, sub_channels, 0, flags, max_transfer, 0)
        return answer

    def answer_done(self, moved: int) -> bytearray:
        """Return the answer to an SRB that succeeded and moved so many bytes."""
        answer = self.answer()
        _SRB_ANSWER.pack_into(answer, 14, SrbStatus.SUCCESS, 0)
        answer[21] = 0
        pack_into("<I", answer, 24, moved)
        return answer

    def answer_check_condition(self, sense: bytes) -> bytearray:
        """Return the answer to an SRB that failed, with SCSI sense data."""
        sense = sense[: self.sense_room]
        status = SrbStatus.ERROR | (SrbStatus.AUTOSENSE_VALID if sense else 0)
        answer = self.answer(Status.IO_DEVICE_ERROR)
        _SRB_ANSWER.pack_into(answer, 14, status, CHECK_CONDITION)
        answer[21] = len(sense)
        pack_into("<I", answer, 24, 0)
        answer[28 : 28 + SENSE_ROOM] = sense.ljust(SENSE_ROOM, b"\0")
        return answer

    def answer_no_lun(self) -> bytearray:
        """Return the answer to an SRB for a LUN that is not there; Linux removes the LUN if it knew it."""
        answer = self.answer(Status.NO_SUCH_DEVICE)
        _SRB_ANSWER.pack_into(answer, 14, SrbStatus.INVALID_LUN, CHECK_CONDITION)
        answer[21] = 0
        pack_into("<I", answer, 24, 0)
        return answer

    def answer_invalid(self) -> bytearray:
        """Return the answer to an SRB that is invalid itself, not its SCSI command."""
        answer = self.answer(Status.INVALID_PARAMETER)
        _SRB_ANSWER.pack_into(answer, 14, SrbStatus.INVALID_REQUEST, 0)
        answer[21] = 0
        pack_into("<I", answer, 24, 0)
        return answer


_DONE = Struct("<III2xBB")
_SENSE_LENGTH_AT = 21


def done_packet(request: bytes) -> bytes:
    """Return the answer to an SRB that succeeded and moved as much as `request`, its packet, asked for."""
    answer = bytearray(request)
    _DONE.pack_into(answer, 0, Operation.COMPLETE_IO, 0, Status.SUCCESS, SrbStatus.SUCCESS, 0)
    answer[12:14] = request[12:14]
    answer[_SENSE_LENGTH_AT] = 0
    return bytes(answer)


CHECK_CONDITION = 2
"""SCSI status: sense data tells why."""


def unsolicited(operation: Operation) -> bytes:
    """Return a packet that answers no request of the guest."""
    return _ANSWER.pack(operation, 0, 0).ljust(PACKET_SIZE, b"\0")
