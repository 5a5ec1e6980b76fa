"""The frame and bodies of the integration components.

Source: Linux include/linux/hyperv.h, struct vmbuspipe_hdr, icmsg_hdr, icmsg_negotiate, heartbeat_msg_data,
shutdown_msg_data, ictimesync_data, ictimesync_ref_data.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from pyvmm.wire import Wire, u8, u16, u32, u64, wire

Version = tuple[int, int]
PIPE_FLAGS = 1
FAILED = 0x80004005  # HV_E_FAIL


class IcType(IntEnum):
    """ICMSGTYPE_*: what a message of the integration services is. The host asks, the guest answers with the same.

    Source: Linux include/linux/hyperv.h.
    """

    NEGOTIATE = 0  # The host lists versions of frame and service; the guest picks one of each.
    HEARTBEAT = 1  # A sequence number, which the guest returns plus one.
    KVP_EXCHANGE = 2  # ICMSGTYPE_KVPEXCHANGE: a value of the registry that host and guest share.
    SHUTDOWN = 3  # Power off, restart or hibernate.
    TIME_SYNC = 4  # ICMSGTYPE_TIMESYNC: the time of day.
    VSS = 5  # Freeze or thaw the file systems.
    FILE_COPY = 7  # ICMSGTYPE_FCOPY: a piece of a file.


class IcFlag(IntFlag):
    """ICMSGHDRFLAG_*."""

    TRANSACTION = 1  # It has a transaction number.
    REQUEST = 2  # The host asks.
    RESPONSE = 4  # The guest answers.


@wire
class IcHeader(Wire):
    """struct vmbuspipe_hdr and struct icmsg_hdr, which always come together."""

    pipe_flags: u32
    pipe_size: u32  # bytes after these two words
    framework_major: u16
    framework_minor: u16
    type: Annotated[u16, IcType]
    version_major: u16
    version_minor: u16
    size: u16  # bytes of the body
    status: u32
    transaction: u8
    flags: Annotated[u8, IcFlag]
    reserved: u16


PIPE_SIZE = 8  # bytes of it that are the pipe header


@wire
class Negotiate(Wire):
    """struct icmsg_negotiate: counts, then `VersionPair`s, framework's first."""

    frameworks: u16
    messages: u16
    reserved: u32


@wire
class VersionPair(Wire):
    """struct ic_version."""

    major: u16
    minor: u16


@wire
class HeartbeatBody(Wire):
    """struct heartbeat_msg_data."""

    sequence: u64
    reserved: Annotated[bytes, "32s"] = bytes(32)


class ShutdownFlag(IntFlag):
    """Requested action of the guest; FORCE does not wait for programs."""

    POWER_OFF = 0
    FORCE = 1
    RESTART = 2
    HIBERNATE = 4


@wire
class ShutdownBody(Wire):
    """struct shutdown_msg_data. `flags` is a ShutdownFlag; Linux does not show the `message`."""

    reason: u32
    timeout_seconds: u32
    flags: Annotated[u32, ShutdownFlag]
    message: Annotated[bytes, "2048s"] = bytes(2048)


class TimeFlag(IntFlag):
    """ICTIMESYNCFLAG_*: set the clock, or only note the sample."""

    SYNC = 1
    SAMPLE = 2


@wire
class TimeBody(Wire):
    """struct ictimesync_data, up to version 3. Times are 100 ns since 1601."""

    host_time: u64
    guest_time: u64
    round_trip: u64
    flags: Annotated[u8, TimeFlag]


@wire
class TimeReferenceBody(Wire):
    """struct ictimesync_ref_data, version 4: the host's time and the reference counter at the same moment."""

    host_time: u64
    reference_time: u64
    flags: Annotated[u8, TimeFlag]
    leap_flags: u8
    stratum: u8
    reserved: Annotated[bytes, "3s"] = bytes(3)
